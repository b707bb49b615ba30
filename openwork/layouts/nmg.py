"""n:m:g: n of every m consecutive outputs keep an input, and equal choices are equally frequent.

Unlike "2:4", which keeps n of m neighbouring *inputs*, this divides outputs: in a group of m rows every
column has n. Columns are cut into chunks of ``C(m, n) * g``; in a chunk each of the C(m, n) patterns of rows
occurs g times. The kernel then runs through all patterns in a fixed order; g trades regularity for freedom.

Paper: Ivanov, Dryden, Ben-Nun, Ashkboos, Hoefler, "STen: Productive and Efficient Sparsity in PyTorch", 2023.
"""

from __future__ import annotations

from math import comb
from typing import ClassVar, Self

import torch
from torch import Tensor

from openwork.kernels.groups import entries
from openwork.kernels.nmg import RATIOS, irregular, nmg, patterns, steps
from openwork.layouts.csr import CSR
from openwork.layouts.held import Held
from openwork.layouts.layout import layout

FILL = 0.9
"""Fraction of the stored weights that must be kept connections; the others fill up steps."""

SMALLEST_BATCH = 16
"""Samples from which on vectors of samples are full."""

CELLS = 2**23
"""Pairs of columns compared at once while a mask is improved: bounds its memory to about 200 MB."""


@layout
class NMG(Held):
    """Groups of 4 or 8 rows of which every column has 2, in steps of one column of every pattern.

    No block of columns need be balanced exactly; it suits where at most a tenth of what it holds is filling.
    """

    name: ClassVar[str] = "n:m:g"

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if wrong := cls.unsuited_to(values):
            return wrong
        if batch < SMALLEST_BATCH:
            return f"it wants batches of {SMALLEST_BATCH} and more"
        found = ratio(topology)
        if found is None:
            kinds = " or ".join(f"{n} of {m}" for n, m in RATIOS)
            return f"its columns do not have {kinds} consecutive rows throughout"
        n, m = found
        entered = entries(topology.crow, topology.col, topology.shape, m)
        filled = steps(entered, topology.shape[1], n, m).filled
        return (
            None if filled >= FILL else f"its patterns are so uneven that {1 - filled:.0%} would be filling"
        )

    @classmethod
    def build(cls, topology: CSR, values: Tensor, batch: int) -> Self:
        found = ratio(topology)
        if found is None:
            raise ValueError(
                f"the columns of this {topology.shape[0]} x {topology.shape[1]} weight do not have the same "
                "number of rows in every group: hold it in another layout, or make a mask with nmg_mask"
            )
        return cls(nmg(topology.crow, topology.col, values.float(), topology.shape, *found))


def ratio(topology: CSR) -> tuple[int, int] | None:
    """The (n, m) with a kernel that every column of every group of rows has, or None.

    Looks at row pointers first, so that other topologies cost next to nothing.
    """
    rows, columns = topology.shape
    for n, m in RATIOS:
        if not topology.kept or rows % m or topology.kept * m != rows * columns * n:
            continue
        ends = topology.crow[::m].diff()
        if bool((ends == n * columns).all()):
            entered = entries(topology.crow, topology.col, topology.shape, m)
            if irregular(entered, n) is None:
                return n, m
    return None


def nmg_mask(scores: Tensor, n: int, m: int, g: int) -> Tensor:
    """The n:m:g mask of (nearly) largest kept score.

    In each chunk of each group the best (column, pattern) pairs are taken first, while the pattern has room;
    then pairs of columns exchange their patterns as long as one exchange gains anything. Columns missing in
    the last chunk count as columns of score zero, so there each pattern occurs at most g times. Ties go to
    the lower column and pattern. Each exchange compares all pairs of a chunk: keep ``C(m, n) * g`` in the
    hundreds.

    Args:
        scores: ``[out, in]``, higher = keep; ``out`` a multiple of m. Not changed.
        n: rows kept of
        m: consecutive rows, ``0 < n <= m``.
        g: occurrences of each pattern in a chunk, at least 1.

    Returns:
        bool ``[out, in]``, True = kept: exactly ``out * in * n / m``.

    Raises:
        ValueError: shapes or numbers that do not fit, or scores that are not finite.
    """
    if not 0 < n <= m or g < 1:
        raise ValueError(f"n:m:g wants 0 < n <= m and g >= 1, found {n}:{m}:{g}")
    if scores.ndim != 2 or scores.shape[0] % m:
        raise ValueError(
            f"{n}:{m}:{g} wants scores [out, in] with out a multiple of {m}, found {list(scores.shape)}"
        )
    if not bool(scores.isfinite().all()):
        raise ValueError(f"{n}:{m}:{g} masks come from finite scores: these contain NaN or infinity")
    sets, (rows, columns) = torch.tensor(patterns(n, m), device=scores.device), scores.shape
    has = (sets[:, None] >> torch.arange(m, device=scores.device) & 1).bool()  # [patterns, m]
    length = comb(m, n) * g
    chunks = -(-columns // length)
    wide = scores.new_zeros(rows, chunks * length, dtype=torch.float64)
    wide[:, :columns] = scores
    problems = wide.view(rows // m, m, chunks, length).permute(0, 2, 3, 1).reshape(-1, length, m)
    kept = problems @ has.T.double()  # [problems, columns, patterns]
    chosen = [_exchanged(part, _greedy(part, g)) for part in kept.split(max(1, CELLS // length**2))]
    which = torch.cat(chosen) if chosen else torch.zeros(0, length, dtype=torch.int64, device=scores.device)
    mask = has[which].view(rows // m, chunks, length, m).permute(0, 3, 1, 2)
    return mask.reshape(rows, chunks * length)[:, :columns].contiguous()


def _greedy(kept: Tensor, g: int) -> Tensor:
    """A pattern for every column, int64 [problems, columns]: best pairs first, each pattern g times."""
    problems, columns, count = kept.shape
    every = torch.arange(problems, device=kept.device)
    room = torch.full((problems, count), g, device=kept.device)
    chosen = torch.full((problems, columns), -1, device=kept.device)
    for pair in kept.flatten(1).argsort(dim=1, descending=True, stable=True).T:
        column, pattern = pair // count, pair % count
        free = (chosen[every, column] < 0) & (room[every, pattern] > 0)
        chosen[every[free], column[free]] = pattern[free]
        room[every[free], pattern[free]] -= 1
    return chosen


def _exchanged(kept: Tensor, chosen: Tensor) -> Tensor:
    """`chosen`, after the best exchange between two columns, as long as there is one that gains."""
    chosen, columns = chosen.clone(), kept.shape[1]
    open_ = torch.arange(kept.shape[0], device=kept.device)
    least = 1e-12 * kept.abs().flatten(1).sum(1)  # less is rounding, which could go in circles
    while open_.numel():
        mine = chosen[open_]
        other = kept[open_].gather(2, mine[:, None, :].expand(-1, columns, -1))  # column a with b's pattern
        own = other.diagonal(dim1=1, dim2=2)
        gain = other + other.mT - own[:, :, None] - own[:, None, :]
        best, place = gain.flatten(1).max(1)
        going = best > least[open_]
        open_, place = open_[going], place[going]
        a, b = place // columns, place % columns
        chosen[open_, a], chosen[open_, b] = chosen[open_, b], chosen[open_, a]
    return chosen
