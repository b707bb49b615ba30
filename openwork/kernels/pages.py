"""Large pages for weights that are too big for the caches.

With pages of 4 KB the processor walks the page table every thousand weights, and its prefetcher stops at the
end of each. Linux offers pages of 2 MB to those who ask; elsewhere nothing changes.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

LARGE_PAGE = 1 << 21
"""Bytes of a large page on x86-64, and on ARM with small pages of 4 KB."""


def in_large_pages(tensor: Tensor) -> Tensor:
    """A contiguous copy of `tensor` (CPU) in memory for which large pages were asked; `tensor` itself if it
    is smaller than one or the system has none.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE") or tensor.nbytes < LARGE_PAGE:
        return tensor
    pages = -(-tensor.nbytes // LARGE_PAGE)
    memory = mmap.mmap(-1, (pages + 1) * LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)  # before the first touch: a page is large from then on, or never
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    begin = -raw.data_ptr() % LARGE_PAGE
    copy = raw[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)
