"""The largest of very many scores, exactly: ties to the first, of never more than a tile at a time.

The scores that rank the free places of a layer (a dense gradient) are as many as the dense weight has entries, and are made tile
by tile. Each tile is looked through once, against a bound that as many as are wanted have reached; only what beats it is
remembered, and whenever there are twice as many as wanted those go that the bound has overtaken. Memory: one tile and what is
wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from openwork.kernels import native, reference

AT_ONCE = 1 << 19
"""Scores that are looked through at a time: so many candidates there may be beyond those that are kept."""

CANDIDATE_BYTES = 12
"""A place and a score."""

NOT_FINITE = "the scores that growth ranks hold NaN or infinity"

_ROOM = 4096
"""Candidates that are waited for at least before the weaker ones go."""

_OVERHANG = 16
"""Entries behind the last candidate of a thread that the kernel may write (csrc/kernels/candidates.cpp)."""

_BINS = 1 << 12
"""Bins of the histogram of candidates (csrc/kernels/candidates.cpp)."""

_READ = 8
"""Looking at a score costs about as much as so many multiply-adds."""


def largest(scores: Tensor, k: int) -> Tensor:
    """Mark the ``k`` largest of ``scores [n]``: boolean ``[n]``, ties to the first, NaN as if minus infinity.

    Natively for float32 and float64 on the CPU, anything else through :func:`openwork.kernels.reference.largest`.
    """
    if not (native.enabled() and scores.is_cpu and scores.dtype in (torch.float32, torch.float64)):
        return reference.largest(scores, k)
    scores = scores.detach().contiguous()
    chosen = torch.empty_like(scores, dtype=torch.bool)
    wide = scores.dtype is torch.float64
    native.library().mark_largest(
        scores.data_ptr(), wide, scores.numel(), k, chosen.data_ptr(), native.threads(scores.numel())
    )
    return chosen


def farther_from_zero(values: Tensor, negative: int, drop: int, drop_negative: int) -> Tensor:
    """Mark all ``values [n]`` but those closest to zero: the ``drop`` of those that are not negative, and the ``drop_negative``
    of the ``negative`` others. Boolean ``[n]``. Of equals the first are not marked. No value is NaN.
    """
    if not (native.enabled() and values.is_cpu and values.dtype in (torch.float32, torch.float64)):
        below = values < 0
        # In order of value those of the other sign come first: those closest to zero follow them.
        closest = ~below & reference.largest(-values, negative + drop)
        closest_negative = below & reference.largest(values, values.numel() - negative + drop_negative)
        return ~(closest | closest_negative)
    values = values.detach().contiguous()
    chosen = torch.empty_like(values, dtype=torch.bool)
    native.library().mark_farther_from_zero(
        values.data_ptr(), values.dtype is torch.float64, values.numel(), negative, drop, drop_negative,
        chosen.data_ptr(), native.threads(values.numel()),
    )  # fmt: skip
    return chosen


def best(tiles: Iterable[tuple[int, Tensor]], taken: Tensor, k: int) -> Tensor:
    """The ``k`` places of largest score that are not taken, ties to the lowest.

    Args:
        tiles: the scores ``[n]`` of ``n`` consecutive places and the number of the first of them, in order, all of one dtype;
            never changed.
        taken: sorted int64 places that are not free.
        k: how many; fewer are found where fewer are free.

    Returns:
        Sorted int64 places.

    Raises:
        FloatingPointError: a score, taken or not, is NaN or infinite.
    """
    search: _Search | None = None
    for first, scores in tiles:
        is_native = native.enabled() and scores.is_cpu and scores.dtype is torch.float32
        search = search or (_NativeSearch if is_native else _Search)(k, scores)
        for part in scores.detach().split(AT_ONCE):
            low, high = torch.searchsorted(taken, taken.new_tensor([first, first + part.numel()])).tolist()
            search.see(first, part, taken[low:high])
            first += part.numel()
    return taken[:0] if search is None else search.places()


class _Search:
    """The best so far, in order of place: places and scores."""

    def __init__(self, k: int, like: Tensor) -> None:
        self.k = k
        self._places = torch.empty(0, dtype=torch.int64, device=like.device)
        self._scores = like.new_empty(0)

    def see(self, first: int, scores: Tensor, taken: Tensor) -> None:
        """Look at one more tile; ``taken`` are the places of it that are not free."""
        if scores.numel() and not all(bool(bound.isfinite()) for bound in scores.aminmax()):
            raise FloatingPointError(NOT_FINITE)
        free = scores.index_fill(0, taken - first, -math.inf)
        # Later places lose ties: once k are found, only more than the weakest of them counts.
        full = self.k > 0 and len(self._scores) == self.k
        found = (free > (self._scores.min() if full else -math.inf)).nonzero().flatten()
        places, scores = torch.cat([self._places, first + found]), torch.cat([self._scores, free[found]])
        stay = largest(scores, min(self.k, len(scores)))
        self._places, self._scores = places[stay], scores[stay]

    def places(self) -> Tensor:
        return self._places


class _NativeSearch(_Search):
    """The same in a buffer that the kernel appends to, with room for as many again as are wanted. The kernel knows a bound below
    which nothing can be among the best, and raises it as it goes.
    """

    def __init__(self, k: int, like: Tensor) -> None:
        super().__init__(k, like)
        self._threshold = torch.tensor([-math.inf if k else math.inf])
        self._histogram = torch.zeros(_BINS, dtype=torch.int32)
        self._state = torch.zeros(
            2, dtype=torch.int64
        )  # candidates so far, and whether a score was not finite

    def see(self, first: int, scores: Tensor, taken: Tensor) -> None:
        scores, taken, count = scores.contiguous(), taken.contiguous(), int(self._state[0])
        threads = native.threads(_READ * scores.numel())
        if count + scores.numel() + threads * _OVERHANG > len(self._places):
            self._grow(count, scores.numel() + threads * _OVERHANG)
        native.kernels().candidates(
            scores.data_ptr(), scores.numel(), first, taken.data_ptr(), taken.numel(), self.k,
            self._threshold.data_ptr(), self._histogram.data_ptr(), self._places.data_ptr(),
            self._scores.data_ptr(), self._state.data_ptr(), threads,
        )  # fmt: skip
        count, odd = self._state.tolist()
        if odd:
            raise FloatingPointError(NOT_FINITE)
        most = max(2 * self.k, _ROOM)
        if count >= most:
            self._state[0] = native.library().keep_above(
                self._places.data_ptr(), self._scores.data_ptr(), count, float(self._threshold)
            )
            if int(self._state[0]) >= 3 * most // 4:  # very many are about as large
                self._settle()

    def places(self) -> Tensor:
        if int(self._state[0]) > self.k:
            self._settle()
        return self._places[: int(self._state[0])].clone()

    def _settle(self) -> None:
        count = int(self._state[0])
        self._threshold[0] = native.library().keep_largest(
            self._places.data_ptr(), self._scores.data_ptr(), count, self.k, native.threads(count)
        )
        self._state[0] = self.k

    def _grow(self, count: int, tile: int) -> None:
        room = max(2 * self.k, _ROOM, count) + tile
        places, scores = self._places[:count], self._scores[:count]
        self._places, self._scores = places.new_empty(room), scores.new_empty(room)
        self._places[:count], self._scores[:count] = places, scores
