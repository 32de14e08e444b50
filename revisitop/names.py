"""Names of images, which have the ending of an image file in one place and none, or another, in the next.

Names are matched as they are where they can be. Else they match where they differ in the ending alone, and
only one name may be meant. Folders before a name are part of it: photographs of different folders often
have one name.
"""
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property

import numpy as np

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff",
                  ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".avif")


class NameIndex:
    """Finds images by name among `names`; of a name that is there several times, the first."""

    def __init__(self, names: Sequence[str]):
        self.names = names
        self._row_of: dict[str, int] = {}
        for row, name in enumerate(names):
            self._row_of.setdefault(name, row)

    @cached_property
    def _of_stem(self) -> dict[str, list[int]]:
        """Not before it is needed: names of a million images take a second."""
        rows = defaultdict(list)
        for name, row in self._row_of.items():
            rows[without_ending(name)].append(row)
        return rows

    def candidates(self, name: str) -> list[int]:
        """The row of the name itself, or else those of names that differ from it in the ending alone."""
        if name in self._row_of:
            return [self._row_of[name]]
        return self._of_stem.get(without_ending(name), [])

    def find(self, name: str) -> int:
        """The row of an image; -1 where there is none, or several may be meant."""
        rows = self.candidates(name)
        return rows[0] if len(rows) == 1 else -1


def find_names(wanted: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Index in `names` of each of `wanted`, (n,) int64; -1 where there is none, or where several of either
    side may be meant."""
    index = NameIndex(names)
    found = np.array([index.find(name) for name in wanted], np.int64)
    by_ending = [i for i in np.flatnonzero(found >= 0) if names[found[i]] != wanted[i]]
    if by_ending:
        times = Counter(map(without_ending, set(wanted)))
        found[[i for i in by_ending if times[without_ending(wanted[i])] > 1]] = -1
    return found


def without_ending(name: str) -> str:
    """The name without an image file's ending; of two endings the last goes."""
    stem, dot, ending = name.rpartition(".")
    return stem if stem and (dot + ending).lower() in IMAGE_SUFFIXES else name


def some_names(names: Sequence[str]) -> str:
    """The first few, for a message."""
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def names_like(missing: Sequence[str], names: Sequence[str]) -> str:
    """For a message that some names are missing: what there is instead, first what differs from them in the
    ending alone."""
    stems = set(map(without_ending, missing))
    near = [name for name in names if without_ending(name) in stems]
    return some_names(near or names) or "no names"
