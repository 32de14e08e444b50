"""What the commands of this folder have in common: one line per mistake, a result on the screen and
in a file."""
import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path


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


def show(text: str, result: dict, path: Path | None) -> None:
    """Print a result's text, and write the result where it is asked for."""
    print(text, flush=True)     # first: a disk may be full
    if path:
        write_json(path, result)


def write_json(path: Path, result: dict) -> None:
    """Write a result whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def run(main: Callable[[], None], *mistakes: type[Exception]) -> None:
    """Call `main`; after a user's mistake say it in one line, and leave with status 1."""
    # Names of files and queries need not be text
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except (UsageError, OSError, *mistakes) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
