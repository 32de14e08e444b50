"""Image lists, made: which images are there, which are held out, and lines written."""
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dolg.core.logging import say
from dolg.data.presence import are_there
from dolg.errors import UserError
from dolg.files import atomic_file

# What to do where images of archives are missing
UNPACK_AGAIN = ("--partial takes those that are there; without the folder .prepared all archives are "
                "unpacked again")
_BLOCK = 2 ** 16    # lines, or names, dealt with at once


@dataclass
class Prepared:
    """What a preparer made.

    Attributes:
        counts: how many were found, by what `DataSet.counts` names.
        lists: names of the lists, relative to the data set's folder.
        variant: of the images, where there are several.
        folders: further folders beside the data set's, with their lists.
        replaces: lists and counts that this run has the say about; others that an earlier run made stay in
            the manifest. None: all.
    """

    counts: dict[str, int]
    lists: list[str] = field(default_factory=list)
    variant: str = ""
    folders: dict[str, list[str]] = field(default_factory=dict)
    replaces: frozenset[str] | None = None


def present(folder: Path, paths: Sequence[str], what: str, partial: bool,
            hint: str = "--partial takes those that are there") -> np.ndarray:
    """Which of the images `paths`, relative to `folder`, are there and not empty, bool (N,).

    Raises UserError that counts and names them, and ends in `hint`, where some are not, unless `partial`,
    or where none is.
    """
    mask = are_there(lambda place: folder / paths[place], len(paths), what, progress=True)
    missing = np.flatnonzero(~mask)
    if len(missing) == len(paths) or (len(missing) and not partial):
        some = ", ".join(paths[i] for i in missing[:3])
        more = ", ..." if len(missing) > 3 else ""
        raise UserError(f"of the {len(paths)} {what}, {len(missing)} are not in {folder}: {some}{more} "
                        f"({hint})")
    if len(missing):
        say(f"{len(missing)} of the {len(paths)} {what} are not there and are left out")
    return mask


def write_list(file: Path, paths: Iterable[str], labels: Iterable[int] | None = None) -> None:
    """One "path label" per line, or the path alone; the file appears when it is whole."""
    lines = iter(paths) if labels is None else (f"{path} {label}" for path, label in zip(paths, labels))
    with atomic_file(file) as target:
        block = []
        for line in lines:
            block.append(line)
            if len(block) == _BLOCK:
                target.write(("\n".join(block) + "\n").encode())
                block.clear()
        if block:
            target.write(("\n".join(block) + "\n").encode())


def contiguous(labels: np.ndarray) -> np.ndarray:
    """Classes of any numbers or names (N,) as 0, 1, ... in their order, int64."""
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def held_out(names: Sequence[str | bytes], labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Which images are held out, bool (N,): of each class about `share`, never all.

    Each name's digest decides, not its place in the list: the same images fall out in any order, and
    whichever other classes there are. What is left of a class after whole images is drawn by its first
    name's digest, so that the sum over many small classes comes to `share` as well.
    """
    digests = name_digests(names, seed)
    order = np.lexsort((digests, labels))
    ordered = labels[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else np.empty(0, int)
    sizes = np.diff(np.r_[starts, len(order)])
    # A second, independent draw from the same digest: its lower half
    draws = (digests[order[starts]] & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2 ** 32
    counts = np.minimum((share * sizes + draws).astype(np.int64), sizes - 1)
    places = np.arange(len(order)) - np.repeat(starts, sizes)
    mask = np.zeros(len(order), bool)
    mask[order] = places < np.repeat(counts, sizes)
    return mask


def name_digests(names: Sequence[str] | Sequence[bytes] | np.ndarray, seed: int = 0) -> np.ndarray:
    """64 bits of each name, uint64 (N,), the same on every machine."""
    salt, digests = seed.to_bytes(8, "little"), bytearray()
    for start in range(0, len(names), _BLOCK):
        block = names[start:start + _BLOCK]
        if isinstance(block, np.ndarray):
            block = block.tolist()
        encoded = (name if isinstance(name, bytes) else os.fsencode(name) for name in block)
        digests += b"".join(hashlib.blake2b(name, digest_size=8, salt=salt).digest() for name in encoded)
    return np.frombuffer(digests, ">u8").astype(np.uint64)
