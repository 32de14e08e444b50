"""Image lists: text files with one "path label" per line."""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dolg.data.boxes import read_boxes
from dolg.data.decode import read_file
from dolg.data.manifest import how_to_get
from dolg.data.presence import are_there
from dolg.errors import UserError

_NEWLINE, _RETURN, _BLANK, _MINUS, _ZERO = 10, 13, 32, 45, 48
# What str.strip removes, of ASCII
_IS_SPACE = np.zeros(256, dtype=bool)
_IS_SPACE[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
_MOST_DIGITS = 18       # what int64 holds of any label


@dataclass(frozen=True)
class ImageList:
    """Images in files, and their classes.

    However long the list, it is a few arrays: worker processes that are forked share them, where a
    Python object per line would be copied as soon as its reference count is touched.

    Attributes:
        file: the list; its paths are relative to its folder.
        text: the list's bytes, uint8.
        starts, ends: (N,) int64, where in `text` each image's path stands.
        labels: (N,) int64.
        boxes: (N,4) float64, what each image is cut to, (x1, y1, x2, y2) in pixels of the upright
            image; None: all are whole. (`read` gives the whole file all the same.)
    """

    file: Path
    text: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The image's path, absolute or relative to the working folder."""
        path = self.text[self.starts[index]:self.ends[index]].tobytes().decode()
        return str(self.file.parent / path)

    def read(self, index: int) -> bytes:
        """The image's file. Raises ImageError where it cannot be read."""
        return read_file(self.name(index))

    def taken(self, indexes: np.ndarray) -> "ImageList":
        """A list of the images of `indexes` (n,), in their order."""
        return replace(self, starts=self.starts[indexes], ends=self.ends[indexes],
                       labels=self.labels[indexes],
                       boxes=None if self.boxes is None else self.boxes[indexes])

    def missing(self, indexes: np.ndarray, progress: bool = False) -> np.ndarray:
        """Those of `indexes` whose files are absent or empty, in their order."""
        there = are_there(lambda place: self.name(indexes[place]), len(indexes),
                          f"images of {self.file.name}", progress)
        return indexes[~there]

    def _with_boxes(self) -> "ImageList":
        """This list, its images cut to their boxes if its folder holds boxes."""
        boxes = read_boxes(self.file.parent)
        if boxes is None:
            return self
        text = self.text.tobytes()
        paths = (text[start:end].decode() for start, end in zip(self.starts.tolist(), self.ends.tolist()))
        return replace(self, boxes=boxes.of(paths, self.file))


def read_image_list(file: Path, num_classes: int | None = None) -> ImageList:
    """The images of `file`, whose paths are relative to its folder.

    The label follows the last blank, so paths may hold blanks. Empty lines are skipped. If the
    folder holds boxes.csv, all images are cut to their boxes (see `dolg.data.boxes`).
    Raises UserError, with the line, for a missing or empty list, a line without a label, or a
    label outside 0 .. num_classes - 1 (without `num_classes`, below 0); and for an image without a
    box, or boxes that make no sense.
    """
    if not file.is_file():
        raise UserError(f"no image list {file}: it has one 'path label' per line "
                        "(DATA_DIR, TRAIN.DATASET and TRAIN.SPLIT, or TEST's, say where); "
                        f"{how_to_get(file.parent)}")
    text = np.fromfile(file, dtype=np.uint8)
    _check_encoding(file, text)
    starts, ends = _lines(text)
    if not len(starts):
        raise UserError(f"the image list {file} is empty")
    path_ends, labels = _labels(text, starts, ends)
    highest = 10 ** _MOST_DIGITS if num_classes is None else num_classes
    wrong = (path_ends <= starts) | (labels < 0) | (labels >= highest)
    if wrong.any():
        first = int(wrong.argmax())
        line = text[starts[first]:ends[first]].tobytes().decode()
        number = _line_number(text[:starts[first]].tobytes())
        raise UserError(f"{file}, line {number}: " + _complaint(line, num_classes))
    return ImageList(file, text, starts, path_ends, labels)._with_boxes()


def _check_encoding(file: Path, text: np.ndarray) -> None:
    if len(text) and text.max() > 127:      # else it is ASCII
        try:
            text.tobytes().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not a text file in UTF-8: {error}") from None


def _lines(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the lines start and end, int64, blanks at both sides and empty lines left out."""
    breaks = np.flatnonzero((text == _NEWLINE) | (text == _RETURN))
    starts, ends = np.append(0, breaks + 1), np.append(breaks, len(text))
    full = starts < ends
    starts, ends = starts[full], ends[full]
    _strip(text, starts, ends, starts, 0, +1)
    _strip(text, starts, ends, ends, -1, -1)
    full = starts < ends
    return starts[full], ends[full]


def _strip(text: np.ndarray, starts: np.ndarray, ends: np.ndarray, edges: np.ndarray, offset: int,
           step: int) -> None:
    """Move `edges` (which are `starts` or `ends`) by `step` while they are at a blank, in place."""
    left = np.arange(len(edges))
    while len(left):
        left = left[starts[left] < ends[left]]
        left = left[_IS_SPACE[text[edges[left] + offset]]]
        edges[left] += step


def _labels(text: np.ndarray, starts: np.ndarray,
            ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each line's path ends, at its start if it is no 'path label', and the label."""
    labels = np.zeros(len(starts), dtype=np.int64)
    places = ends - 1
    digit = np.ones(len(starts), dtype=bool)
    for power in range(_MOST_DIGITS):
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
    right = (places < ends - 1 - negative) & (text[places] == _BLANK)
    return np.where(right, places, starts), labels


def _line_number(before: bytes) -> int:
    """The number of the line that follows `before`; \\n, \\r and \\r\\n end lines."""
    return before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n") + 1


def _complaint(line: str, num_classes: int | None) -> str:
    """What is wrong with a line."""
    path, _, label = line.rpartition(" ")
    digits = label.removeprefix("-")
    if not path or not (digits.isascii() and digits.isdecimal()):
        return f"'{line[:100]}' is not 'path label', with a whole number as label"
    if num_classes is not None:
        return (f"label {label} is outside 0 .. {num_classes - 1} (MODEL.NUM_CLASSES is "
                f"{num_classes})")
    if label.startswith("-"):
        return f"label {label} is below 0"
    return f"label {label} has more than {_MOST_DIGITS} digits"
