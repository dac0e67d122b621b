"""What a training step frees stays with the process: the next step takes the same tensors again.

glibc hands large freed blocks back to the kernel, and takes each of their pages anew, zeroed, when they are wanted
again: thirteen thousand page faults in a step of ResNet-20 on a CPU, a tenth of its time (`benchmarks/heap.py`).
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of malloc.h: how much free memory is kept, and how large a block must be to be mapped by itself."""
_MOST = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_THRESHOLD: 32 * 2**20}
"""The most that glibc takes (bytes)."""
_CHOSEN_BY_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keep up to 2 GB of freed memory, in blocks of up to 32 MB, from now on, in this whole process.

    Nothing is done where malloc is not glibc's, or where the environment sets it already.

    Returns:
        Whether it was done.

    Example:
        >>> kept = keep_freed_memory()
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _CHOSEN_BY_THE_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(option, size) == 1 for option, size in _MOST.items())
