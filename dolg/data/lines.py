"""The lines of text lists: paths, perhaps with a label each, found in arrays however long the list is."""
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dolg.errors import UserError

_NEWLINE, _RETURN, _MINUS, _ZERO = 10, 13, 45, 48
_BOM = (0xEF, 0xBB, 0xBF)
# What str.strip removes, of ASCII
_IS_SPACE = np.zeros(256, dtype=bool)
_IS_SPACE[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
_SEPARATES = np.zeros(256, dtype=bool)
_SEPARATES[[9, 32]] = True                          # tab and blank
_MISTAKEN = np.zeros(256, dtype=bool)
_MISTAKEN[[ord(","), ord(";")]] = True              # what other programs write before a label
MOST_DIGITS = 18        # what int64 holds of any label
_SHOWN = 100


@dataclass(frozen=True)
class Lines:
    """The lines of a file that are not empty, without blanks at both sides.

    Attributes:
        file: the file.
        text: its bytes, uint8.
        starts, ends: (N,) int64, where in `text` each line begins and ends.
    """

    file: Path
    text: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.text[self.starts[index]:self.ends[index]].tobytes().decode()

    def place(self, index: int) -> str:
        """The file and the number of a line, for messages; \\n, \\r and \\r\\n end lines."""
        before = self.text[:self.starts[index]].tobytes()
        number = before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n") + 1
        return f"{self.file}, line {number}"

    def cut(self, ends: np.ndarray) -> Iterator[str]:
        """What of each line stands before `ends` (N,)."""
        for start, end in zip(self.starts.tolist(), ends.tolist()):
            yield self.text[start:end].tobytes().decode()


@dataclass(frozen=True)
class Labels:
    """The whole number at the end of each line.

    Attributes:
        path_ends: (N,) int64, where in the text the path before it ends; at the line's start where the
            line is not a path and a label.
        values: (N,) int64; MOST_DIGITS digits at most.
        is_mistaken: (N,) bool, a comma or semicolon stands where a blank or tab belongs.
    """

    path_ends: np.ndarray
    values: np.ndarray
    is_mistaken: np.ndarray


def read_lines(file: Path) -> Lines:
    """The lines of an image list in UTF-8, with or without a byte order mark.

    Raises UserError for an empty list, and for one in another encoding.
    """
    text = np.fromfile(file, dtype=np.uint8)
    _check_encoding(file, text)
    breaks = np.flatnonzero((text == _NEWLINE) | (text == _RETURN))
    starts, ends = np.append(0, breaks + 1), np.append(breaks, len(text))
    full = starts < ends
    starts, ends = starts[full], ends[full]
    # Lists that were joined have a mark in the middle
    starts[_begins_with_bom(text, starts, ends)] += len(_BOM)
    _strip(text, starts, ends, starts, 0, +1)
    _strip(text, starts, ends, ends, -1, -1)
    full = starts < ends
    if not full.any():
        raise UserError(f"the image list {file} is empty")
    return Lines(file, text, starts[full], ends[full])


def find_labels(lines: Lines) -> Labels:
    """The label at the end of each line, after blanks or tabs."""
    text, starts, ends = lines.text, lines.starts, lines.ends
    labels = np.zeros(len(starts), dtype=np.int64)
    places = ends - 1
    digit = np.ones(len(starts), dtype=bool)
    for power in range(MOST_DIGITS):
        values = text[places].astype(np.int64) - _ZERO
        digit &= (values >= 0) & (values <= 9) & (places > starts)
        if not digit.any():
            break
        labels[digit] += values[digit] * 10 ** power
        places[digit] -= 1
    negative = (text[places] == _MINUS) & (places > starts)
    places[negative] -= 1
    labels[negative] *= -1
    # A number of more digits than fit leaves a digit where the blank should be
    has_number = (places < ends - 1 - negative) & (places > starts)
    separators = text[places]
    path_ends = np.where(has_number & _SEPARATES[separators], places, starts)
    _strip(text, starts, path_ends, path_ends, -1, -1)
    ends_in_comma = _MISTAKEN[text[path_ends - 1]] & (path_ends > starts)
    path_ends[ends_in_comma] = starts[ends_in_comma]
    return Labels(path_ends, labels, ends_in_comma | has_number & _MISTAKEN[separators])


def complaint(line: str, num_classes: int | None = None) -> str:
    """What is wrong with a line that should have a path and a label of 0 .. num_classes - 1."""
    shown = repr(line[:_SHOWN])
    found = re.fullmatch(r".*[^\s,;]\s*[ \t](-?\d+)", line, re.ASCII | re.DOTALL)
    if not found:
        mistaken = re.search(r"[,;](?=\s*-?\d+$)", line, re.ASCII)
        hint = f"; put a blank or a tab in the place of '{mistaken[0]}'" if mistaken else ""
        return f"{shown} is not 'path label', with a whole number as label{hint}"
    label = found[1]
    if num_classes is not None:
        return (f"label {label} is outside 0 .. {num_classes - 1} (MODEL.NUM_CLASSES is "
                f"{num_classes}): {shown}")
    if label.startswith("-"):
        return f"label {label} is below 0: {shown}; leave out lines of images without a label"
    return f"label {label} has more than {MOST_DIGITS} digits"


def _check_encoding(file: Path, text: np.ndarray) -> None:
    """Raise UserError unless the text is in UTF-8."""
    head = text[:2].tobytes()
    if head in (b"\xff\xfe", b"\xfe\xff") or (len(head) == 2 and (head[0] == 0) != (head[1] == 0)):
        raise UserError(f"{file} is not a text file in UTF-8 but seems to be in UTF-16, which Windows calls "
                        "Unicode: save it as UTF-8")
    if not len(text) or (0 < text.min() and text.max() < 128):      # ASCII
        return
    data = text.tobytes()
    try:
        data.decode()
        wrong = data.find(b"\0")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        line = data.count(b"\n", 0, wrong) + 1
        raise UserError(f"{file} is not a text file in UTF-8: line {line} holds the byte "
                        f"0x{data[wrong]:02x}; save it as UTF-8")


def _begins_with_bom(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which lines begin with a byte order mark, bool (N,)."""
    begins = text[starts] == _BOM[0]
    if begins.any():
        begins &= ends - starts >= len(_BOM)
        for offset in (1, 2):
            begins[begins] = text[starts[begins] + offset] == _BOM[offset]
    return begins


def _strip(text: np.ndarray, starts: np.ndarray, ends: np.ndarray, edges: np.ndarray, offset: int,
           step: int) -> None:
    """Move `edges` (which are `starts` or `ends`) by `step` while they are at a blank, in place."""
    left = np.arange(len(edges))
    while len(left):
        left = left[starts[left] < ends[left]]
        left = left[_IS_SPACE[text[edges[left] + offset]]]
        edges[left] += step
