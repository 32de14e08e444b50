"""Which images to extract: the queries and database of a Revisited set, a folder, a list."""
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dolg.core.logging import say
from dolg.data.boxes import BOXES, Box, BoxesByIndex, has_boxes, read_boxes
from dolg.data.finder import find_images, image_file
from dolg.data.lines import Lines, complaint, find_labels, read_lines
from dolg.data.manifest import how_to_get
from dolg.errors import UserError
from revisitop.groundtruth import GroundTruth, GroundTruthError, load_ground_truth

# Images of a list that are looked for before all are taken for missing
_LOOKED_FOR = 1000


class Names(Sequence):
    """Strings, a million of which are two arrays: no object each, and shared by forked processes."""

    def __init__(self, names: Iterable[str]):
        encoded = [os.fsencode(name) for name in names]
        self._text = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    @classmethod
    def of_arrays(cls, text: np.ndarray, ends: np.ndarray) -> "Names":
        """From what `arrays` gave."""
        names = cls([])
        names._text, names._ends = text, ends
        return names

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All bytes (uint8), and where each name ends and the next begins (int64)."""
        return self._text, self._ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._text[self._ends[index]:self._ends[index + 1]].tobytes())


@dataclass(frozen=True)
class ImageSource:
    """Images in a fixed order.

    Attributes:
        names: in the store.
        folder, files: image i is the file folder / files[i]; without `files`, folder / names[i].
        boxes: the box (x1, y1, x2, y2), in pixels of the upright image, that an image is cut to, by
            its index; those that are not in there are whole.
    """

    names: Sequence[str]
    folder: Path
    files: Sequence[str] | None = None
    boxes: Mapping[int, Box] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        return self.folder / (self.names if self.files is None else self.files)[index]

    def digest(self) -> str:
        """SHA-256 of the names and boxes, in order."""
        digest = hashlib.sha256()
        for index, name in enumerate(self.names):
            digest.update(os.fsencode(f"{name}\t{self.boxes.get(index)}\n"))
        return digest.hexdigest()


def revisited_truth(root: Path, name: str, key: str) -> GroundTruth:
    """The ground truth root/name/gnd_name.pkl, for which the configuration key `key` asked.

    Raises UserError where it is missing or no ground truth.
    """
    truth_file = root / name / f"gnd_{name}.pkl"
    if not truth_file.is_file():
        raise UserError(f"no ground truth {truth_file}: {key} {name} is a folder under {root} with "
                        f"jpg/ and gnd_{name}.pkl in it; {how_to_get(root / name)}")
    try:
        return load_ground_truth(truth_file)
    except GroundTruthError as error:
        raise UserError(str(error)) from None


def revisited_set(root: Path, name: str, crop_queries: bool,
                  key: str = "INFER.DATASET") -> dict[str, ImageSource]:
    """{"query": ..., "database": ...} of the folder root/name with jpg/ and gnd_name.pkl.

    Raises UserError where the folder, its ground truth or an image that this names is missing.
    """
    sources = revisited_sources(root, name, crop_queries, key)
    _check_present(root / name / f"gnd_{name}.pkl", root / name / "jpg", sources)
    return sources


def revisited_sources(root: Path, name: str, crop_queries: bool,
                      key: str = "INFER.DATASET") -> dict[str, ImageSource]:
    """As `revisited_set`, whether the images are there or not."""
    truth, folder = revisited_truth(root, name, key), root / name / "jpg"
    return {"query": _named(folder, truth.queries, dict(enumerate(truth.boxes)) if crop_queries else {}),
            "database": _named(folder, truth.images, {})}


def _named(folder: Path, names: list[str], boxes: dict[int, Box]) -> ImageSource:
    return ImageSource(list(names), folder, [image_file(folder, name) for name in names], boxes)


def _check_present(truth_file: Path, folder: Path, sources: dict[str, ImageSource]) -> None:
    missing = [path.name for source in sources.values()
               for path in map(source.path, range(len(source))) if not path.is_file()]
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        raise UserError(f"{truth_file} names {len(missing)} images that {folder} lacks: "
                        f"{', '.join(missing[:3])}{more}; {how_to_get(folder.parent)}")


def images_of(location: Path) -> ImageSource:
    """All images under a folder, by name; or those of a text file, one path per line.

    What a folder holds beside images is said (see `find_images`). Paths in a file are relative to its
    folder; labels after them, as training lists have them, are left aside. If that folder holds
    boxes.csv, all images are cut to their boxes (see `dolg.data.boxes`). Raises UserError where nothing
    is there, some lines have a label and others none, or an image lacks a box.
    """
    if location.is_dir():
        if has_boxes(location):
            raise UserError(f"INFER.IMAGES {location} is a folder with {BOXES}, which is for the images "
                            "of lists: give a list in it, one path per line")
        found = find_images(location)
        for remark in found.remarks(location):
            say(remark)
        if not found.names:
            raise UserError(f"the folder {location} holds no images")
        return ImageSource(Names(found.names), location)
    if not location.is_file():
        raise UserError(f"INFER.IMAGES {location} does not exist: give a folder or a text file "
                        "with one path per line")
    names = _listed_paths(read_lines(location))
    if not any(_exist(location.parent, names)):
        raise UserError(f"of the {len(names)} images of {location} none that was looked for is there, "
                        f"such as {location.parent / names[0]}: is their disk mounted? (Paths are "
                        f"relative to {location.parent})")
    boxes = read_boxes(location.parent)
    table = {} if boxes is None else BoxesByIndex(boxes.of(names, location))
    return ImageSource(Names(names), location.parent, boxes=table)


def _listed_paths(lines: Lines) -> list[str]:
    """The paths of a list, whose lines all have a label or all have none."""
    labels = find_labels(lines)
    labelled = labels.path_ends > lines.starts
    numbered = np.flatnonzero(labelled | labels.is_mistaken)
    # Names may end in a number, too
    if not len(numbered) or any(_exist(lines.file.parent, [lines[i] for i in _some(numbered).tolist()])):
        return list(lines)
    wrong = labels.is_mistaken if labels.is_mistaken.any() else ~labelled | (labels.values < 0)
    if wrong.any():
        first, other = int(wrong.argmax()), int(labelled.argmax())
        if labelled[first] or labels.is_mistaken[first]:
            fault = complaint(lines[first])
        else:
            fault = (f"{lines[first]!r} has no label, and {lines[other]!r} has one ({lines.place(other)}): "
                     "give every line a label, or none")
        raise UserError(f"{lines.place(first)}: {fault}")
    return list(lines.cut(labels.path_ends))


def _some(things: Sequence) -> Sequence:
    """At most _LOOKED_FOR, evenly spread."""
    return things[::-(-len(things) // _LOOKED_FOR)]


def _exist(folder: Path, names: Sequence[str]) -> Iterator[bool]:
    """Whether each of some of the files is there."""
    return (os.path.exists(folder / name) for name in _some(names))
