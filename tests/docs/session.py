"""Executes a page's blocks of Python in one namespace: reads the names of files from the FIFO that is its
argument, a line each, and writes beside each what it said, and what came of it: 0 or 1."""
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import dolg
from tests.docs import miniature


def main() -> None:
    sys.path[0] = ""
    dolg.load = miniature.shrunk_load(dolg.load)
    names = {"__name__": "__main__"}
    for line in open(sys.argv[1]):
        file, status = Path(line.strip()), 0
        with file.with_suffix(".said").open("w") as said, redirect_stdout(said), redirect_stderr(said):
            try:
                exec(compile(file.read_text(), file.name, "exec"), names)
            except BaseException:       # SystemExit, too: a page's code has no reason to leave
                traceback.print_exc()
                status = 1
        part = file.with_suffix(".part")
        part.write_text(str(status))
        part.rename(file.with_suffix(".status"))


if __name__ == "__main__":
    main()
