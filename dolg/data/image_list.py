"""Image lists: text files with one "path label" per line."""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dolg.data.boxes import read_boxes
from dolg.data.decode import read_file
from dolg.data.lines import MOST_DIGITS, complaint, find_labels, read_lines
from dolg.data.manifest import how_to_get
from dolg.data.presence import are_there
from dolg.errors import UserError

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

    Blanks or tabs separate path and label; paths may hold blanks. Empty lines are skipped. If the
    folder holds boxes.csv, all images are cut to their boxes (see `dolg.data.boxes`).
    Raises UserError, with the line, for a missing or empty list, a line without a label, or a
    label outside 0 .. num_classes - 1 (without `num_classes`, below 0); and for an image without a
    box, or boxes that make no sense.
    """
    if not file.is_file():
        raise UserError(f"no image list {file}: it has one 'path label' per line "
                        "(DATA_DIR, TRAIN.DATASET and TRAIN.SPLIT, or TEST's, say where); "
                        f"{how_to_get(file.parent)}")
    lines = read_lines(file)
    labels = find_labels(lines)
    highest = 10 ** MOST_DIGITS if num_classes is None else num_classes
    wrong = (labels.path_ends <= lines.starts) | (labels.values < 0) | (labels.values >= highest)
    if wrong.any():
        first = int(wrong.argmax())
        raise UserError(f"{lines.place(first)}: {complaint(lines[first], num_classes)}")
    return ImageList(file, lines.text, lines.starts, labels.path_ends, labels.values)._with_boxes()
