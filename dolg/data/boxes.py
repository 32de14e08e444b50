"""Boxes that images are cut to: a list whose folder holds boxes.csv is a list of cropped images."""
import csv
import io
import math
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path

import numpy as np

from dolg.errors import UserError
from dolg.files import atomic_file

BOXES = "boxes.csv"
COLUMNS = ("path", "x1", "y1", "x2", "y2")

Box = tuple[float, float, float, float]


class Boxes:
    """The boxes of a file, by path; to be let go once lists have theirs.

    Args:
        file: where they stand.
        rows: the row of each path.
        table: (N,4) float64, (x1, y1, x2, y2) in pixels of the upright image.
    """

    def __init__(self, file: Path, rows: dict[str, int], table: np.ndarray):
        self.file, self._rows, self._table = file, rows, table

    def of(self, paths: Iterable[str], list_file: Path) -> np.ndarray:
        """(n,4) float64, the boxes of the images of `list_file`, whose paths these are.

        Raises UserError, with the path, where an image has none: it would be seen whole among images
        that are cut.
        """
        try:
            return self._table[np.fromiter((self._rows[path] for path in paths), np.int64)]
        except KeyError as error:
            raise UserError(f"{self.file} has no box for '{error.args[0]}' of {list_file}: give one to "
                            "every image, under the path that the list has, or take the file away to "
                            "see all images whole") from None


class BoxesByIndex(Mapping):
    """The boxes of a table (N,4) as a mapping from 0 .. N - 1: no object each, and shared by forked
    processes."""

    def __init__(self, table: np.ndarray):
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __getitem__(self, index: int) -> Box:
        if not 0 <= index < len(self):
            raise KeyError(index)
        return tuple(self._table[index].tolist())


def has_boxes(folder: Path) -> bool:
    """Whether the lists of a folder are of cropped images."""
    return os.path.lexists(folder / BOXES)      # a link that leads nowhere is no wish for whole images


def read_boxes(folder: Path) -> Boxes | None:
    """The boxes of folder/boxes.csv; None where there is no such file.

    It is a CSV file in UTF-8 whose header names the columns path, x1, y1, x2 and y2, in any order;
    others are left aside. A path may come twice with the same box. Raises UserError, with the line,
    where this is not so, or a box has no pixel once its corners are truncated to integers.
    """
    if not has_boxes(folder):
        return None
    file = folder / BOXES
    numbered = _numbered_rows(file)
    _, header = next(numbered, (1, []))
    if not set(COLUMNS) <= set(header):
        raise UserError(f"{file} has no header with the columns {','.join(COLUMNS)}: its first line is "
                        f"'{','.join(header)[:100]}'")
    pick = itemgetter(*map(header.index, COLUMNS))
    rows, lines, corners = {}, array("q"), array("d")
    for number, (line, fields) in enumerate(numbered):
        if len(fields) != len(header):
            raise UserError(f"{file}, line {line}: {len(fields)} columns, and the header has {len(header)}")
        path, *box = pick(fields)
        try:
            corners.extend(map(float, box))
        except ValueError:
            raise UserError(f"{file}, line {line}: the box '{','.join(box)}' is not four numbers") from None
        lines.append(line)
        first = rows.setdefault(path, number)
        if first != number and corners[4 * first:4 * first + 4] != corners[4 * number:]:
            raise UserError(f"{file}, line {line}: '{path}' has another box than in line {lines[first]}")
    table = np.array(corners).reshape(-1, 4)
    _check(file, table, lines)
    return Boxes(file, rows, table)


def write_boxes(file: Path, rows: Iterable[tuple[str, Box]]) -> None:
    """Write (path, (x1, y1, x2, y2)) of images as a file that `read_boxes` reads, whole or not at all."""
    with atomic_file(file) as target:
        text = io.TextIOWrapper(target, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((path, *box) for path, box in rows)
        text.detach()


def pixels_inside(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of what a box (x1, y1, x2, y2), its corners truncated to integers,
    leaves of an image of height x width pixels.

    Raises ValueError if that is nothing, and for what is not four finite numbers.
    """
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"{tuple(box)} is no box: give four finite numbers, x1 y1 x2 y2")
    x1, y1, x2, y2 = (max(0, int(corner)) for corner in box)
    x2, y2 = min(x2, width), min(y2, height)
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"the box {tuple(box)} leaves nothing of an image of {width} x {height} pixels")
    return y1, x1, y2 - y1, x2 - x1


def _numbered_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, each with the line it begins in; empty lines are skipped."""
    line = 1
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{file}, line {line}: not CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text file in UTF-8: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None


def _check(file: Path, table: np.ndarray, lines: array) -> None:
    """Raise UserError at the first box that no image can be cut to."""
    finite = np.isfinite(table).all(axis=1)
    whole = np.trunc(table)
    empty = (whole[:, 2:] <= whole[:, :2]).any(axis=1)
    wrong = ~finite | empty
    if wrong.any():
        first = int(wrong.argmax())
        box = ",".join(f"{corner:g}" for corner in table[first])
        raise UserError(f"{file}, line {lines[first]}: the box {box} " + (
            "has no pixel: x2 must be above x1, and y2 above y1, once they are truncated to integers"
            if finite[first] else "is not of finite numbers"))
