"""What the commands of this folder have in common: one line per mistake, a result on the screen and
in a file."""
import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from revisitop.printing import guard_output, one_line

# A list of numbers, as JSON is indented; no text has a line break
_LIST = re.compile(r"\[\n[-+\d.eE,\s]*(?:null[-+\d.eE,\s]*)*\]")

# Help of the option of all commands that compare stores
ACROSS = "also compare stores that were made with different weights or settings, and say what differs"


class UsageError(ValueError):
    """Arguments that cannot be used."""


class Parser(argparse.ArgumentParser):
    """Arguments whose mistakes are UsageError; `--json`, where there is one, may be no folder."""

    def error(self, message: str):
        raise UsageError(f"{message}; --help lists the arguments")

    def parse_args(self, *arguments):
        args = super().parse_args(*arguments)
        if getattr(args, "json", None) and args.json.is_dir():
            raise UsageError(f"cannot write --json {args.json}: it is a folder")
        return args


def show(text: str, result: dict, path: Path | None, files: Mapping | None = None) -> None:
    """Print a result's text, and write the result where it is asked for (see `write_json`)."""
    print(text, flush=True)     # first: a disk may be full
    if path:
        write_json(path, result, files)


def write_json(path: Path, result: dict, files: Mapping | None = None) -> None:
    """Write a result whole or not at all.

    files: what it was made of, a path or a list of paths under each name. They are written under
    "files", relative to the folder of `path`, so that the folder around both may be moved.
    """
    if files:
        result = {**result, "files": {name: _relative(value, path) for name, value in files.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(_LIST.sub(_in_one_line, json.dumps(result, indent=1, allow_nan=False)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _relative(value: Path | str | Sequence, path: Path) -> str | list[str]:
    if isinstance(value, (str, Path)):
        return os.path.relpath(value, path.parent)
    return [_relative(each, path) for each in value]


def _in_one_line(numbers: re.Match) -> str:
    return " ".join(numbers.group().split()).replace("[ ", "[").replace(" ]", "]")


def run(main: Callable[[], None], *mistakes: type[Exception]) -> None:
    """Call `main`; after a user's mistake say it in one line, and leave with status 1."""
    guard_output()
    try:
        main()
    except (UsageError, OSError, *mistakes) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
