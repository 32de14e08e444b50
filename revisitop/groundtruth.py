"""The ground truth of a benchmark, `gnd_NAME.pkl`, read as data and checked."""
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from revisitop.pickles import PickleError, load_plain_pickle, text_of

Box = tuple[float, float, float, float]

REVISITED_LABELS = ("easy", "hard", "junk")
PLAIN_LABELS = ("ok", "junk")

# Bytes of memory that a file may take: labels of two million images
_MEMORY = 1 << 30


class GroundTruthError(ValueError):
    """A ground truth that cannot be used; one line says what is wrong with it."""


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Names and labels of a benchmark.

    name: of the data set, such as "roxford5k".
    images: names of the database images; labels are indexes into this list.
    queries: names of the query images.
    boxes: per query (x1, y1, x2, y2) in pixels, not rounded, or None for the whole image.
    labels: per query {"easy", "hard", "junk"} -> int64 indexes of database images, or
        {"ok", "junk"} where the file has the older, plain labels.
    sha256: of the file.
    """

    name: str
    images: list[str]
    queries: list[str]
    boxes: list[Box | None]
    labels: list[dict[str, np.ndarray]]
    sha256: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether the labels are ok and junk, without easy and hard."""
        return "ok" in self.labels[0]

    @property
    def easy(self) -> list[np.ndarray]:
        """Per query the indexes of its easy positives; empty where the labels are plain."""
        return self._label("easy")

    @property
    def hard(self) -> list[np.ndarray]:
        """Per query the indexes of its hard positives; empty where the labels are plain."""
        return self._label("hard")

    @property
    def junk(self) -> list[np.ndarray]:
        """Per query the indexes of its junk images."""
        return self._label("junk")

    def _label(self, name: str) -> list[np.ndarray]:
        return [entry.get(name, np.empty(0, np.int64)) for entry in self.labels]


def load_ground_truth(path: str | Path) -> GroundTruth:
    """Read and check `gnd_NAME.pkl`, a pickled {"imlist", "qimlist", "gnd"}.

    `gnd` has per query `easy` and `hard`, or `ok`, and perhaps `junk`: lists, sets or arrays of
    indexes into `imlist` without common members; and perhaps `bbx`. Names may be text, bytes of
    UTF-8, or paths. Raises GroundTruthError otherwise, and for a pickle that asks for anything but
    plain data; nothing in the file is executed.
    """
    path = Path(path)
    try:
        content = load_plain_pickle(path, _MEMORY)
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise GroundTruthError(
            f"cannot read the ground truth {path}: {os.strerror(error.errno or 0)}") from None
    except PickleError as error:
        raise GroundTruthError(f"ground truth {error}") from None
    try:
        return _parse(content, path.stem.removeprefix("gnd_"), sha256)
    except GroundTruthError as error:
        raise GroundTruthError(f"{path} is not a ground truth: {error}") from None


def _parse(content, name: str, sha256: str) -> GroundTruth:
    if not isinstance(content, Mapping):
        raise GroundTruthError(f"it holds a {type(content).__name__}, not a dict")
    content = _with_text_keys(content)
    missing = [key for key in ("imlist", "qimlist", "gnd") if key not in content]
    if missing:
        raise GroundTruthError(f"it has no {' and no '.join(missing)}")
    images, queries = (_names(content[key], key) for key in ("imlist", "qimlist"))
    entries = content["gnd"]
    if not isinstance(entries, (list, tuple, np.ndarray)) or len(entries) != len(queries):
        size = len(entries) if hasattr(entries, "__len__") else "no"
        raise GroundTruthError(f"gnd has {size} entries for the {len(queries)} names of qimlist")
    boxes, labels = [], []
    for query, entry in zip(queries, entries):
        try:
            if not isinstance(entry, Mapping):
                raise GroundTruthError(f"has a {type(entry).__name__} as its entry, not a dict")
            entry = _with_text_keys(entry)
            boxes.append(_box(entry))
            labels.append(_labels(entry, len(images)))
        except GroundTruthError as error:
            raise GroundTruthError(f"query {query!r} {error}") from None
    if len({tuple(entry) for entry in labels}) > 1:
        raise GroundTruthError("some queries have easy and hard, others ok")
    return GroundTruth(name, images, queries, boxes, labels, sha256)


def _with_text_keys(entry: Mapping) -> dict:
    return {text_of(key): value for key, value in entry.items()}


def _names(names, key: str) -> list[str]:
    if isinstance(names, np.ndarray):
        names = names.tolist()
    if not isinstance(names, (list, tuple)) or len(names) == 0:
        found = "it is empty" if isinstance(names, (list, tuple)) else f"it is a {type(names).__name__}"
        raise GroundTruthError(f"{key} is not a list of names: {found}")
    for name in names:
        if not isinstance(name, (str, bytes)):
            raise GroundTruthError(f"{key} holds something that is not text, a {type(name).__name__}")
    names = [text_of(name) for name in names]
    if len(set(names)) < len(names):
        repeated = Counter(names).most_common(1)[0][0]
        raise GroundTruthError(f"{key} has {repeated!r} more than once")
    return names


def _box(entry: Mapping) -> Box | None:
    if entry.get("bbx") is None:
        return None
    try:
        box = np.asarray(entry["bbx"], np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        box = np.empty(0)
    if box.size != 4 or not np.isfinite(box).all():
        raise GroundTruthError(f"has the bbx {str(entry['bbx'])[:80]!r}, not four finite numbers")
    return tuple(box.tolist())


def _labels(entry: Mapping, num_images: int) -> dict[str, np.ndarray]:
    kinds = PLAIN_LABELS if not {"easy", "hard"} & set(entry) else REVISITED_LABELS
    labels = {}
    for kind in kinds:
        if kind not in entry and kind != "junk":
            raise GroundTruthError(f"has no {kind} (labels are easy and hard, or ok, and perhaps junk; found: "
                                   f"{', '.join(map(repr, list(entry)[:8])) or 'nothing'})")
        labels[kind] = _indexes(entry.get(kind, ()), kind, num_images)
    every = np.concatenate(list(labels.values()))
    found, times = np.unique(every, return_counts=True)
    if (times > 1).any():
        raise GroundTruthError(f"labels image {found[times > 1][0]} more than once "
                               f"({', '.join(kinds)} must not overlap)")
    return labels


def _indexes(values, kind: str, num_images: int) -> np.ndarray:
    if isinstance(values, (set, frozenset)):
        values = list(values)
    # Of a list with text in it, NumPy would make an array that is as wide as the longest everywhere
    if isinstance(values, (list, tuple)) and not all(type(value) is int for value in values):
        raise GroundTruthError(f"has something else than a list of integers as {kind}")
    indexes = np.asarray(values)
    if indexes.ndim == 1 and indexes.size == 0:
        return np.empty(0, np.int64)
    if indexes.ndim != 1 or indexes.dtype.kind not in "iu":
        raise GroundTruthError(f"has something else than a list of integers as {kind}")
    outside = indexes[(indexes < 0) | (indexes >= num_images)]
    if outside.size:
        raise GroundTruthError(f"has image {outside[0]} as {kind}; the {num_images} images of "
                               f"imlist are 0 to {num_images - 1}")
    return indexes.astype(np.int64)
