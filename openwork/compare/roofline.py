"""How near to the best possible is a kernel? The limits of this machine, measured in the same run.

A layer cannot be done before its multiplications are, nor before its weights have been read. Both rates are measured with the
instruction set level and the threads in use: multiply-adds in registers, and reading a buffer of the size of the weights again
and again, so that weights which stay in a cache are compared with that cache. Threads that share the work of one small layer
also hand data to one another. How long that takes depends on whether their cores share a cache, and a virtual machine may be
moved from one case to the other while it runs: two figures are comparable only where their handovers are.

Paper: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore architectures",
Communications of the ACM 52(4), 2009.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from openwork.kernels import native

STEP = 192
"""Multiply-adds are counted in multiples of this (csrc/kernels/roofline.cpp)."""

ALIGNED = 128
"""Floats that a thread reads are a multiple of this (csrc/kernels/roofline.cpp)."""

LARGEST = 1 << 28
"""Bytes of the largest buffer that is read: more than any cache holds."""

SECONDS = 0.002
"""What one sample takes, about."""

SAMPLES = 9
"""The fastest counts: a limit is what the machine can do undisturbed."""


@dataclass
class Roof:
    """The limits of this machine with a number of threads.

    Attributes:
        threads: that worked.
        gflops: 10^9 operations a second, a multiply-add being two, float32.
        handover: seconds until a thread has what another one wrote; 0 with one thread. About 30 to 60 ns between cores that share
            a cache, several times as long between others.
        reads: bytes of a buffer -> 10^9 bytes a second it was read at; grows as sizes are asked for.
    """

    threads: int
    gflops: float
    handover: float = 0.0
    reads: dict[int, float] = field(default_factory=dict)

    def read(self, nbytes: int) -> float:
        """10^9 bytes a second, reading a buffer of about ``nbytes`` (the next power of two) again and again."""
        size = min(LARGEST, 1 << max(14, (nbytes - 1).bit_length()))
        if size not in self.reads:
            self.reads[size] = _read(size, self.threads)
        return self.reads[size]

    def share_of_multiply_adds(self, kept: int, batch: int, seconds: float) -> float:
        """Useful operations a second, as a fraction of what the machine can do."""
        return 2e-9 * kept * batch / seconds / self.gflops

    def share_of_reads(self, nbytes: int, seconds: float) -> float:
        """Bytes of weights a second, as a fraction of the rate at which a buffer of that size is read."""
        return 1e-9 * nbytes / seconds / self.read(nbytes) if nbytes else 0.0


def roof() -> Roof | None:
    """Measure this machine, some tens of milliseconds. None without native kernels (``OPENWORK_NATIVE=0``)."""
    if not native.enabled():
        return None
    threads = torch.get_num_threads()
    return Roof(threads, _multiply_adds(threads), handover() if threads > 1 else 0.0)


def handover() -> float:
    """Seconds a line of memory takes from one thread to another at present, the best of a few milliseconds."""
    lines = torch.zeros(64, dtype=torch.int32)

    def call(count: int) -> None:
        native.kernels().most_handovers(lines.zero_().data_ptr(), count)

    return 0.5 / _rate(call)


def _multiply_adds(threads: int) -> float:
    sums = torch.zeros(threads * 16)

    def call(count: int) -> None:
        native.kernels().most_multiply_adds(count * STEP, sums.data_ptr(), threads)

    return 2e-9 * STEP * threads * _rate(call)


def _read(size: int, threads: int) -> float:
    count = max(1, size // 4 // threads // ALIGNED) * ALIGNED
    x, sums = torch.zeros(threads * count), torch.zeros(threads * 16)
    x += 1  # memory that was never written to is one page of zeros, whatever its size

    def call(times: int) -> None:
        native.kernels().most_reads(x.data_ptr(), count, times, sums.data_ptr(), threads)

    return 1e-9 * x.nbytes * _rate(call)


def _rate(call: Callable[[int], None]) -> float:
    """The most steps a second that ``call(steps)`` makes."""
    steps = 1
    while min(_seconds(call, steps) for _ in range(SAMPLES)) < SECONDS / 2:  # the first wake the threads
        steps *= 2
    return max(steps / _seconds(call, steps) for _ in range(SAMPLES))


def _seconds(call: Callable[[int], None], steps: int) -> float:
    begin = time.perf_counter()
    call(steps)
    return max(time.perf_counter() - begin, 1e-9)
