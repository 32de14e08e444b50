"""What the file system says of files: of many at once, as each waits for the disk or the network."""
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

_THREADS = 32
_BLOCK = 1024       # a task for each file would take a kilobyte for each
_END = 4096         # bytes that tell most files of the same size apart; JPEG files begin alike


def are_there(path: Callable[[int], str | os.PathLike], count: int, what: str,
              progress: bool) -> np.ndarray:
    """Which of the files `path(0)` .. `path(count - 1)` are there and not empty, bool (count,).

    `progress` shows a bar on a terminal, named `what`.
    """
    return of_each(lambda place: _is_there(path(place)), np.zeros(count, bool), what, progress)


def of_each(look: Callable[[int], object], out: np.ndarray, what: str, progress: bool) -> np.ndarray:
    """`out`, with `look(i)` as its row i."""
    for place, found in enumerate(_looked_at(look, range(len(out)), what, progress)):
        out[place] = found
    return out


def size_and_time(file: str | os.PathLike) -> tuple[int, int]:
    """A file's size in bytes and time of change in ns; -1 where it is not there."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):       # ValueError: a zero byte in the path
        return -1, -1
    return found.st_size, found.st_mtime_ns


def same_contents(path: Callable[[int], str | os.PathLike], count: int, what: str,
                  progress: bool) -> list[list[int]]:
    """Groups of the files `path(0)` .. `path(count - 1)` that have the same contents, by SHA-256.

    Only files of the same size and with the same last bytes are read whole. Those that cannot be read
    are in no group.
    """
    groups = [list(range(count))]
    for look in (_size, _end, _digest):
        places = [place for group in groups for place in group]
        found = dict(zip(places, _looked_at(lambda place: look(path(place)), places, what, progress)))
        groups = [alike for group in groups for alike in _alike(group, found)]
    return groups


def _looked_at(look: Callable[[int], object], places: Sequence[int], what: str,
               progress: bool) -> Iterator:
    """What `look` returns for each of `places`, in their order."""
    block = min(_BLOCK, -(-len(places) // _THREADS) or 1)
    starts, silent = range(0, len(places), block), None if progress else True
    with ThreadPoolExecutor(_THREADS) as threads, \
            tqdm(desc=what, total=len(places), unit="image", leave=False, disable=silent) as bar:
        for found in threads.map(lambda start: [look(place) for place in places[start:start + block]], starts):
            yield from found
            bar.update(len(found))


def _alike(group: list[int], found: dict[int, Hashable]) -> list[list[int]]:
    """The parts of a group for which the same was found."""
    parts = defaultdict(list)
    for place in group:
        if found[place] is not None:
            parts[found[place]].append(place)
    return [part for part in parts.values() if len(part) > 1]


def _size(file: str | os.PathLike) -> int | None:
    size, _ = size_and_time(file)
    return None if size < 0 else size


def _end(file: str | os.PathLike) -> bytes | None:
    try:
        with open(file, "rb") as content:
            content.seek(max(os.fstat(content.fileno()).st_size - _END, 0))
            return hashlib.sha256(content.read(_END)).digest()
    except OSError:
        return None


def _digest(file: str | os.PathLike) -> bytes | None:
    try:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").digest()
    except OSError:
        return None


def _is_there(file: str | os.PathLike) -> bool:
    try:
        found = os.stat(file)
    except (OSError, ValueError):       # ValueError: a zero byte in the path
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0
