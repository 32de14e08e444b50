"""Annotation files as their makers wrote them: lines of columns, and MATLAB's arrays of structs."""
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from dolg.data.boxes import Box
from dolg.errors import UserError

Kind = Callable[[str], int | float | str]

# What SciPy raises for files that it cannot read, and NumPy for arrays that have no such field
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, EOFError,
               zlib.error, MatReadError)
_SHOWN = 3      # of many things that a message could name


def read_table(file: Path, form: str, kinds: Sequence[Kind], header: str = "",
               counted: bool = False) -> Iterator[tuple[int, tuple]]:
    """The lines of a table of columns between blanks, each with its number, from 1; empty ones are skipped.

    Args:
        file: in UTF-8.
        form: names of the columns, for messages.
        kinds: what reads each column. Where the first is `str` it is a path that may have blanks, else
            the last is.
        header: a line before them, whatever the blanks between its words.
        counted: the very first line is the number of lines after the header.

    Raises UserError for a missing file and, with the line, for what is not as said here.
    """
    lines = _numbered_lines(file)
    expected = int(_first_line(lines, file, "a number of lines", str.isdecimal)) if counted else None
    if header:
        _first_line(lines, file, f"the header '{header}'", lambda line: line.split() == header.split())
    found = 0
    for found, (number, line) in enumerate(lines, 1):
        split = line.rsplit if kinds[0] is str else line.split
        columns = split(maxsplit=len(kinds) - 1)
        try:
            yield number, tuple(kind(column) for kind, column in zip(kinds, columns, strict=True))
        except ValueError:
            raise UserError(f"{file}, line {number}: '{line[:100]}' is not '{form}'") from None
    if not found or found != (expected or found):
        raise UserError(f"{file} is damaged: it has {found} lines of '{form}'"
                        + ("" if expected is None else f", and its first line says {expected}"))


def read_by_key(file: Path, form: str, kinds: Sequence[Kind], **more) -> dict:
    """The lines of a table by their first column: (number of the line, the other columns...).

    The arguments are those of `read_table`. Raises UserError also where two lines have the same key.
    """
    rows = {}
    for number, (key, *values) in read_table(file, form, kinds, **more):
        if key in rows:
            raise UserError(f"{file}, line {number}: '{key}' stands in line {rows[key][0]} already")
        rows[key] = (number, *values)
    return rows


def check_keys(keys: Collection, file: Path, other_keys: Collection, other: Path) -> None:
    """Raise UserError where one of two files says something of an image that the other does not know."""
    for lacking, named, having in ((file, other_keys - keys, other), (other, keys - other_keys, file)):
        if named:
            some = ", ".join(map(str, sorted(named)[:_SHOWN])) + (", ..." if len(named) > _SHOWN else "")
            raise UserError(f"{lacking} lacks {len(named)} of the images that {having} has: {some}")


def checked_box(box: Box, place: str) -> Box:
    """The box (x1, y1, x2, y2), in floats. Raises UserError, which names `place`, where it has no pixel."""
    if not all(map(math.isfinite, box)) or int(box[0]) >= int(box[2]) or int(box[1]) >= int(box[3]):
        raise UserError(f"{place}: the box {', '.join(f'{corner:g}' for corner in box)} has no pixel")
    return tuple(map(float, box))


def read_structs(file: Path, name: str, kinds: Mapping[str, Callable]) -> list[tuple]:
    """The fields that `kinds` names of each struct of the array `name` of a MATLAB file, read by them.

    Single values may be wrapped in any number of arrays. Raises UserError for a file that cannot be
    read or lacks the array or a field, and for a value that is not of its kind.
    """
    try:
        with open(file, "rb") as content:
            structs = np.atleast_1d(loadmat(content, squeeze_me=True, variable_names=[name])[name])
        columns = [structs[field] for field in kinds]
    except FileNotFoundError:
        raise UserError(_absent(file)) from None
    except _UNREADABLE as error:
        raise UserError(f"{file} is no MATLAB file with an array '{name}' of {', '.join(kinds)} "
                        f"({error})") from None
    rows = []
    for number, values in enumerate(zip(*columns), 1):
        try:
            bare = [np.asarray(value).item() for value in values]
            rows.append(tuple(kind(value) for kind, value in zip(kinds.values(), bare)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{file}, {name}({number}) is not as it should be: {error}") from None
    return rows


def _numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, without blanks at both sides, and their numbers from 1."""
    try:
        with open(file, encoding="utf-8-sig") as text:
            for number, line in enumerate(text, 1):
                if line := line.strip():
                    yield number, line
    except FileNotFoundError:
        raise UserError(_absent(file)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text file in UTF-8: {error}; save it as UTF-8") from None


def _first_line(lines: Iterator[tuple[int, str]], file: Path, what: str,
                is_right: Callable[[str], bool]) -> str:
    number, line = next(lines, (1, ""))
    if not is_right(line):
        raise UserError(f"{file}, line {number}: '{line[:100]}' is not {what}")
    return line


def _absent(file: Path) -> str:
    return f"{file} is not there, and the lists cannot be made without it"
