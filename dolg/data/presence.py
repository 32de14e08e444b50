"""What the file system says of files: of many at once, as each waits for the disk or the network."""
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

_THREADS = 32
_BLOCK = 1024       # a task for each file would take a kilobyte for each


def are_there(path: Callable[[int], str | os.PathLike], count: int, what: str,
              progress: bool) -> np.ndarray:
    """Which of the files `path(0)` .. `path(count - 1)` are there and not empty, bool (count,).

    `progress` shows a bar on a terminal, named `what`.
    """
    return of_each(lambda index: _is_there(path(index)), np.zeros(count, bool), what, progress)


def of_each(look: Callable[[int], object], out: np.ndarray, what: str, progress: bool) -> np.ndarray:
    """`out`, with `look(i)` as its row i."""
    def look_at(start: int) -> list:
        return [look(index) for index in range(start, min(start + block, len(out)))]

    block = min(_BLOCK, -(-len(out) // _THREADS) or 1)
    starts, silent = range(0, len(out), block), None if progress else True
    with ThreadPoolExecutor(_THREADS) as threads, \
            tqdm(desc=what, total=len(out), unit="image", leave=False, disable=silent) as bar:
        for start, found in zip(starts, threads.map(look_at, starts)):
            out[start:start + len(found)] = found
            bar.update(len(found))
    return out


def size_and_time(file: str | os.PathLike) -> tuple[int, int]:
    """A file's size in bytes and time of change in ns; -1 where it is not there."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):       # ValueError: a zero byte in the path
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _is_there(file: str | os.PathLike) -> bool:
    try:
        found = os.stat(file)
    except (OSError, ValueError):       # ValueError: a zero byte in the path
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0
