"""Whether files are there: many at once, as each waits for the disk or the network."""
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
    def look(start: int) -> list[bool]:
        return [_is_there(path(index)) for index in range(start, min(start + _BLOCK, count))]

    mask, starts, silent = np.zeros(count, bool), range(0, count, _BLOCK), None if progress else True
    with ThreadPoolExecutor(_THREADS) as threads, \
            tqdm(desc=what, total=count, unit="image", leave=False, disable=silent) as bar:
        for start, found in zip(starts, threads.map(look, starts)):
            mask[start:start + len(found)] = found
            bar.update(len(found))
    return mask


def _is_there(file: str | os.PathLike) -> bool:
    try:
        found = os.stat(file)
    except (OSError, ValueError):       # ValueError: a zero byte in the path
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0
