"""Sorted positions: which ones are in both, where one set stands in another, both as one, and some of them by chance.

The connections of a sparse weight are named by sorted int64 positions without repeats, and an update compares
the old ones with the new. Two sorted lists need no binary search: on the CPU they are merged, which costs
time linear in their sizes and hardly misses a cache. Everything takes memory of the size of the lists.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openwork.kernels import native

_TINY = 1e-200
"""Ends that are all smaller are not scaled to a table."""

_BITS_PER_NUMBER = 256
"""In a set with more bits than that for each number, looking for those that are set takes longer than sorting."""

_FEW = 16
"""A list so many times shorter than the other is searched for instead of merged."""


def below(positions: Tensor, bounds: Tensor, *, or_at: bool = False) -> Tensor:
    """How many of the sorted ``positions`` lie below each of the sorted ``bounds``.

    Args:
        positions: sorted int64 ``[n]``, may repeat.
        bounds: sorted int64 ``[m]``, may repeat.
        or_at: count those equal to a bound as well.

    Returns:
        int64 ``[m]``, what ``torch.searchsorted`` gives.
    """
    if not _native(positions, bounds) or _FEW * bounds.numel() < positions.numel():
        return torch.searchsorted(positions, bounds, right=or_at)
    positions, bounds, counts = positions.contiguous(), bounds.contiguous(), torch.empty_like(bounds)
    native.library().count_below(
        positions.data_ptr(), positions.numel(), bounds.data_ptr(), bounds.numel(), or_at, counts.data_ptr(),
        _threads(positions, bounds),
    )  # fmt: skip
    return counts


def located(positions: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sorted ``wanted`` stand among the sorted ``positions``.

    Returns:
        The index of each (int64, in range wherever there are positions at all, and meaningless where not found), and
        whether it was found (bool).
    """
    if not positions.numel():
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    if not _native(positions, wanted) or _FEW * wanted.numel() < positions.numel():
        index = below(positions, wanted).clamp_(max=positions.numel() - 1)
        return index, positions[index] == wanted
    positions, wanted = positions.contiguous(), wanted.contiguous()
    index, found = torch.empty_like(wanted), torch.empty_like(wanted, dtype=torch.bool)
    native.library().locate(
        positions.data_ptr(),
        positions.numel(),
        wanted.data_ptr(),
        wanted.numel(),
        index.data_ptr(),
        found.data_ptr(),
        _threads(positions, wanted),
    )
    return index, found


def origins(positions: Tensor, wanted: Tensor) -> Tensor:
    """Where each of the sorted ``wanted`` stands among the sorted ``positions``, -1 where it does not."""
    index, found = located(positions, wanted)
    return index.masked_fill_(~found, -1)


def carried(items: Tensor, origin: Tensor) -> Tensor:
    """What belonged to old positions, at the new ones: ``items[origin]``, zero where the origin is negative.

    Args:
        items: ``[n]`` of any dtype.
        origin: ``[m]``, int32 or int64, as :func:`origins` gives them.
    """
    if not items.numel():
        return items.new_zeros(origin.numel())
    if not native.enabled() or items.device.type != "cpu" or items.itemsize not in (2, 4, 8):
        return items.index_select(0, origin.clamp(min=0)).index_fill_(0, where(origin < 0), 0)
    items, origin = items.detach().contiguous(), origin.int().contiguous()
    moved = items.new_empty(origin.numel())
    native.library().carry(
        items.data_ptr(),
        items.itemsize,
        origin.data_ptr(),
        origin.numel(),
        moved.data_ptr(),
        _threads(origin),
    )
    return moved


def free_places(taken: Tensor, ranks: Tensor) -> Tensor:
    """The free places of the given ranks: free place number 0 is the first one that is not taken.

    Args:
        taken: sorted int64, without repeats.
        ranks: sorted int64 ``[m]``.

    Returns:
        Sorted int64 ``[m]``.
    """
    if not _native(taken, ranks) or _FEW * ranks.numel() < taken.numel():
        # taken[i] - i is how many free places precede taken[i].
        free_before = taken - torch.arange(taken.numel(), device=taken.device)
        return ranks + below(free_before, ranks, or_at=True)
    taken, ranks, places = taken.contiguous(), ranks.contiguous(), torch.empty_like(ranks)
    native.library().free_places(
        taken.data_ptr(),
        taken.numel(),
        ranks.data_ptr(),
        ranks.numel(),
        places.data_ptr(),
        _threads(taken, ranks),
    )
    return places


def merged(one: Tensor, other: Tensor) -> Tensor:
    """Two sorted lists as one sorted list; what is in both is there twice."""
    if not _native(one, other):
        return torch.cat([one, other]).sort().values
    one, other = one.contiguous(), other.contiguous()
    both = one.new_empty(one.numel() + other.numel())
    native.library().merge(
        one.data_ptr(), one.numel(), other.data_ptr(), other.numel(), both.data_ptr(), _threads(both)
    )
    return both


def ascending(positions: Tensor) -> Tensor:
    """Positions, none negative, in order."""
    if not _native(positions):
        return positions.sort().values
    positions = positions.contiguous()
    ordered = torch.empty_like(positions)
    native.library().sort(positions.data_ptr(), positions.numel(), ordered.data_ptr(), _threads(positions))
    return ordered


class Marks:
    """A set of numbers below ``n``, a bit each: what is drawn in any order comes out in order, and once."""

    def __init__(self, n: int) -> None:
        self._bits = torch.zeros(-(-n // 64), dtype=torch.int64)

    @staticmethod
    def suits(n: int, count: int) -> bool:
        """Whether setting bits is the way to put ``count`` numbers below ``n`` in order: there are not many more of them."""
        return native.enabled() and n <= _BITS_PER_NUMBER * count

    def add(self, numbers: Tensor) -> int:
        """Add int64 numbers on the CPU; returns how many were not there yet."""
        numbers = numbers.contiguous()
        fresh: int = native.library().set_bits(self._bits.data_ptr(), numbers.data_ptr(), numbers.numel())
        return fresh

    def numbers(self, count: int) -> Tensor:
        """All of them in order, int64 ``[count]``; ``count`` is how many there are."""
        listed = torch.empty(count, dtype=torch.int64)
        native.library().list_bits(
            self._bits.data_ptr(), self._bits.numel(), listed.data_ptr(), native.threads(self._bits.numel())
        )
        return listed


def distinct(n: int, k: int, generator: torch.Generator) -> Tensor:
    """``k`` distinct numbers below ``n``, every set equally likely, sorted, without memory of size ``n`` when ``k`` is small."""
    if 2 * k >= n:
        return ascending(torch.randperm(n, generator=generator)[:k])
    # Never more are drawn than are missing, so nothing is thrown away but repeats, and no number is favoured.
    if Marks.suits(n, k):
        marks, count = Marks(n), 0
        while count < k:
            count += marks.add(torch.randint(n, (k - count,), generator=generator))
        return marks.numbers(k)
    drawn = torch.empty(0, dtype=torch.int64)
    while drawn.numel() < k:
        more = ascending(torch.randint(n, (k - drawn.numel(),), generator=generator))
        drawn = merged(drawn, more).unique_consecutive()
    return drawn


def where(mask: Tensor) -> Tensor:
    """Sorted int64 positions at which a boolean tensor, read in order, is True."""
    if mask.device.type != "cpu":
        return mask.flatten().nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def reached(ends: Tensor, points: Tensor) -> Tensor:
    """How many of the finite float64 ``ends [n]``, sorted, lie below or at each of the ``points [m]``, none negative, in any
    order: ``torch.searchsorted(ends, points, right=True)``, by a table instead of a search.
    """
    flat = ends.numel() == 0 or float(ends[-1]) < _TINY
    if flat or not native.enabled() or ends.device.type != "cpu":
        return torch.searchsorted(ends, points, right=True)
    ends, points = ends.contiguous(), points.contiguous()
    counts = torch.empty_like(points, dtype=torch.int64)
    native.library().count_reached(
        ends.data_ptr(), ends.numel(), points.data_ptr(), points.numel(), counts.data_ptr(), _threads(points)
    )
    return counts


def _threads(*lists: Tensor) -> int:
    return native.threads(sum(one.numel() for one in lists))


def _native(*positions: Tensor) -> bool:
    return native.enabled() and all(p.device.type == "cpu" and p.dtype is torch.int64 for p in positions)
