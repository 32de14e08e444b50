"""The memory of large tensors: how the C library handles it, and whether it did not suffice."""
import ctypes

import torch

# Parameters of glibc's mallopt (malloc.h)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> None:
    """Let this process reuse freed memory, where glibc would give large blocks back at once.

    On a CPU the maps of a large image are such blocks: the kernel clears their pages for every
    layer anew, which took half the time of extraction of EfficientNet-Lite0. Other C
    libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def is_out_of_memory(error: Exception) -> bool:
    """Also where the CPU's allocator, the driver or a library of CUDA says so, by plain errors."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        text in str(error) for text in ("can't allocate memory", "out of memory", "ALLOC_FAILED"))
