"""Keep freed memory for the next tensors instead of giving it back to the system.

The C library returns every freed block of more than 32 MiB at once, and the system hands out each page again cleared. A layer
of half a million neurons has activations of a quarter of a gigabyte, made and freed several times a step: clearing their pages
takes about as long as computing them.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h of the GNU C library


def keep_freed_memory() -> bool:
    """From now on let this process keep the memory that it frees, for whatever it needs next. It then never shrinks.

    For networks whose tensors have tens of megabytes and more. The same as starting with ``MALLOC_MMAP_MAX_=0`` and
    ``MALLOC_TRIM_THRESHOLD_=-1``. Large pages, which PyTorch asks for when it is started with ``THP_MEM_ALLOC_ENABLE=1``, go well
    with it.

    Returns:
        Whether the C library is one that can be told so (the GNU one).
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, -1))
