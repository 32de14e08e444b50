"""Where in a set of tar shards each image lies: one scan of their headers, kept in a file."""
import itertools
import json
import os
import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from dolg.errors import UserError
from dolg.files import atomic_file
from revisitop.names import IMAGE_SUFFIXES

IMAGE_KINDS = tuple(ending[1:] for ending in IMAGE_SUFFIXES)
_LABEL_KINDS = ("cls", "json")
_BLOCK = 512            # of tar files, in bytes
_MAKE = "python tools/make_shards.py makes them"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class ShardIndex:
    """The images of all shards, one after another.

    Attributes:
        shards: the names of S files, with their sizes in bytes and times of change in ns.
        shard: (N,) int64, which of them each image is in.
        offsets, sizes: (N,) int64, in bytes, of the image in its shard.
        labels: (N,) int64.
        names: uint8, the members' names one after another.
        name_ends: (N,) int64, where each ends.
    """

    shards: list[list]
    shard: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    name_ends: np.ndarray

    def member(self, index: int) -> str:
        """The name of an image's member of its shard."""
        start = self.name_ends[index - 1] if index else 0
        return self.names[start:self.name_ends[index]].tobytes().decode("utf-8", "replace")


_ARRAYS = ("shard", "offsets", "sizes", "labels", "names", "name_ends")


def shard_files(folder: Path, pattern: str) -> list[Path]:
    """The shards in `folder` whose names are `pattern`, which may hold ranges of numbers, as in
    train-{0000..0099}.tar, and *, ? and [...].

    Raises UserError if there are none, or not all of a range.
    """
    files = []
    for name in _expand(pattern):
        found = sorted(folder.glob(name)) if _WILD.search(name) else [folder / name]
        if not found or not all(file.is_file() for file in found):
            raise UserError(f"no shard {folder / name} (DATA_DIR, TRAIN.DATASET and TRAIN.SPLIT, "
                            f"or TEST's, say where; {_MAKE})")
        files += found
    return files


def shard_index(files: list[Path], cache: Path, progress: bool = False) -> ShardIndex:
    """The index of `files`: from `cache` where it is of these files as they are, or else from their
    headers, and written to `cache` where that can be.

    Raises UserError for a damaged or cut shard, or a member without its label.
    """
    shards = [_stamp(file) for file in files]
    known = _load(cache, shards)
    if known is not None:
        return known
    parts = [_scan(file) for file in tqdm(files, desc="reading the shards' headers", unit="shard",
                                          leave=False, disable=None if progress else True)]
    index = _join(shards, parts)
    try:
        _save(cache, index)
    except OSError:
        return index        # a folder that may only be read: it is scanned again next time
    return index


def _expand(pattern: str) -> list[str]:
    """The names in a pattern with ranges; leading zeros are kept."""
    pieces = _RANGE.split(pattern)      # text, first, last, text, ...
    choices = [pieces[:1]]
    for first, last, text in zip(pieces[1::3], pieces[2::3], pieces[3::3]):
        numbers = range(int(first), int(last) + 1)
        choices.append([f"{number:0{len(first)}d}{text}" for number in numbers])
    return ["".join(parts) for parts in itertools.product(*choices)]


def _stamp(file: Path) -> list:
    found = file.stat()
    return [file.name, found.st_size, found.st_mtime_ns]


def _scan(file: Path) -> list[tuple[str, int, int, int]]:
    """(name, offset, size, label) of each image of a shard, in their order."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, dict[str, int | None]] = {kind: {} for kind in _LABEL_KINDS}
    try:
        with open(file, "rb") as source, tarfile.open(fileobj=source, mode="r:") as tar:
            end = 0
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                key, kind = _split_name(member.name)
                if not member.isreg() or kind not in IMAGE_KINDS + _LABEL_KINDS:
                    continue
                if kind in IMAGE_KINDS:
                    if key in images:
                        raise UserError(f"the shard {file} has two images of the name {key}")
                    images[key] = member
                else:
                    source.seek(member.offset_data)
                    labels[kind][key] = _label(kind, source.read(member.size))
            _check_end(file, source, end)
    except tarfile.TarError as error:
        raise UserError(f"the shard {file} is damaged or no tar file: {error}") from None
    # JSON without a label may be about anything
    named = {*labels["cls"], *(key for key, label in labels["json"].items() if label is not None)}
    for key in sorted(named - images.keys()):
        raise UserError(f"the shard {file} has no image ({', '.join(IMAGE_KINDS)}) for {key}")
    return [(member.name, member.offset_data, member.size, _label_of(file, key, labels))
            for key, member in images.items()]


def _label_of(file: Path, key: str, labels: dict[str, dict[str, int | None]]) -> int:
    """An image's label: that of .cls, else that of .json."""
    kind = next((kind for kind in _LABEL_KINDS if key in labels[kind]), None)
    if kind is None:
        raise UserError(f"the shard {file} has no label ({' or '.join(_LABEL_KINDS)}) for {key}")
    label = labels[kind][key]
    if label is None:
        advice = "" if kind == "cls" else f' as "label", or in {key}.cls'
        raise UserError(f"the shard {file} has no label in {key}.{kind}: give a whole number, 0 or more"
                        + advice)
    return label


def _split_name(name: str) -> tuple[str, str]:
    """Key and kind, as webdataset has it: they part at the first dot of the last name."""
    folder, slash, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return folder + slash + stem, kind.lower()


def _label(kind: str, content: bytes) -> int | None:
    """The label in a member's content; None where it holds none."""
    try:
        label = int(content) if kind == "cls" else json.loads(content)["label"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return label if type(label) is int and 0 <= label < 2 ** 63 else None


def _check_end(file: Path, source: BinaryIO, end: int) -> None:
    """tarfile takes whatever is no header for the end, such as that of a cut or damaged file."""
    source.seek(end)
    if source.read(_BLOCK) != bytes(_BLOCK):
        raise UserError(f"the shard {file} is damaged or cut short after {end} bytes")


def _join(shards: list[list], parts: list[list[tuple[str, int, int, int]]]) -> ShardIndex:
    rows = [row for part in parts for row in part]
    if not rows:
        raise UserError(f"there is no image in {shards[0][0]}" +
                        (f" and {len(shards) - 1} other shards" if len(shards) > 1 else ""))
    names = [row[0].encode("utf-8", "replace") for row in rows]
    numbers = np.array([row[1:] for row in rows], dtype=np.int64)
    return ShardIndex(
        shards, np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        *(np.ascontiguousarray(column) for column in numbers.T),
        np.frombuffer(b"".join(names), np.uint8), np.cumsum([len(name) for name in names]))


def _save(cache: Path, index: ShardIndex) -> None:
    with atomic_file(cache) as file:
        np.savez(file, shards=np.array(json.dumps(index.shards)),
                 **{name: getattr(index, name) for name in _ARRAYS})


def _load(cache: Path, shards: list[list]) -> ShardIndex | None:
    """The index in the file `cache`; None where it is absent, damaged or of other shards."""
    if not os.path.exists(cache):
        return None
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            if json.loads(str(arrays["shards"])) == shards:
                return ShardIndex(shards, *(arrays[name] for name in _ARRAYS))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return None
