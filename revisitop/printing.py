"""What commands print: text of others, such as names of files, shows its control characters and moves no
cursor, colors nothing, and begins no line of its own."""
import re
import sys

# C0, DEL and C1; marks that turn the direction of text; line and paragraph separators; halves of characters
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def one_line(text: object, kept: str = "") -> str:
    """The text with its control characters, but for those `kept`, as Python writes them: \\x1b, \\n."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in kept else repr(found[0])[1:-1], str(text))


def guard_output() -> None:
    """From now on no control characters are printed but line breaks, tabs and, for progress bars on standard
    error, returns to the beginning of the line."""
    _guard(sys.stdout, "\n\t")
    _guard(sys.stderr, "\n\t\r")


def write_data(text: str) -> None:
    """To standard output; as it is, unless that is a terminal."""
    # The class's method is not the guarded one
    write = sys.stdout.write if sys.stdout.isatty() else type(sys.stdout).write.__get__(sys.stdout)
    write(text)


def _guard(stream, kept: str) -> None:
    stream.reconfigure(errors="backslashreplace")       # an encoding may lack more
    write = stream.write
    stream.write = lambda text: write(one_line(text, kept))
