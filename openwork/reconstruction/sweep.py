"""The column sweep of SparseGPT and GPTQ: settle one column after another, and let the others make up for it.

When the weights of column ``j`` are set to other values (zero, or a point of a quantiser's grid), the optimal-brain-surgeon
rule says how all columns still to come should change. With the upper factor ``U`` of ``inverse(H)`` that is one rank-one update
a column, the same for all rows: ``e = (w_j - q_j) / U[j, j]``, then ``W[:, k] -= e U[j, k]`` for ``k > j``.
Columns to the left of a settled one never change again, so the result is no optimum; the sum of all ``e^2`` is exactly what it
costs: ``tr(D H D^T)`` with the damped ``H``.

E. Frantar, D. Alistarh, SparseGPT, ICML 2023, arXiv 2301.00774; E. Frantar et al., GPTQ, ICLR 2023, arXiv 2210.17323.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Choose = Callable[[Tensor, Tensor, int], Tensor]
"""``(weights [out, n], saliency [out, n], first column) -> mask [out, n]``: which of the next ``n`` columns' weights stay."""


class Quantizer(Protocol):
    """What a sweep asks of a quantiser; it may remember codes and scales as it is asked."""

    group: int
    """Consecutive columns whose scales are fitted together; 0 is a whole row."""

    def fit(self, weights: Tensor, mask: Tensor, first: int) -> None:
        """Fit scales to a group, just before its first column is settled.

        Args:
            weights: the group's weights as the sweep has left them so far, ``[out, n]``; the last group may be short.
            mask: which of them stay (True where that is not decided yet).
            first: its first column.
        """

    def column(self, weights: Tensor, mask: Tensor, index: int, pivot: float) -> Tensor:
        """The values that one column gets.

        Args:
            weights: as the sweep has left them, zero where pruned, ``[out]``.
            mask: which of them stay; the others must be returned as zero.
            index: of the column.
            pivot: ``U[j, j]``: an error of ``w - q`` costs ``((w - q) / pivot)^2``.

        Returns:
            What the layer will compute with, ``[out]``. A weight returned as it came (an outlier) costs nothing.
        """


class Swept(NamedTuple):
    """What a sweep returns."""

    weight: Tensor
    mask: Tensor
    loss: Tensor
    """Squared error of each row, ``[out]``; its sum is ``tr(D H D^T)`` with the damped ``H``."""


def sweep(
    weight: Tensor,
    factor: Tensor,
    mask: Tensor | None = None,
    *,
    choose: Choose | None = None,
    every: int = 128,
    quantize: Quantizer | None = None,
    block: int = 128,
) -> Swept:
    """Prune, quantise, or both, column by column, each error pushed on to the columns to come.

    Args:
        weight: ``[out, in]``; where ``mask`` is False its values count as weights to be removed, not as zeros.
        factor: ``U`` of :func:`openwork.reconstruction.hessian.inverse_factor`, ``[in, in]``.
        mask: which weights may stay, boolean ``[out, in]``; all by default.
        choose: decides the mask of the next ``every`` columns from their current weights and their saliency
            ``w^2 / U[j, j]^2``, minus infinity where ``mask`` is False; without it the mask is what was given.
        every: columns that ``choose`` decides together: 128 for SparseGPT, ``m`` for n:m. The last may be fewer.
        quantize: gives the weights that stay their values; without it they keep what the sweep has made of them.
        block: columns between two updates of all the rest. It changes only the speed (but for the last bits).

    Returns:
        Weights, mask, and what they cost. Nothing is changed in place; pruned weights are exactly zero.
    """
    rows, columns = weight.shape
    # one column after another is read and written, so columns are held contiguously
    w = weight.to(factor.dtype).T.contiguous()
    alive = torch.ones_like(w, dtype=torch.bool) if mask is None else mask.T.contiguous()
    kept = alive.clone()
    pivots = factor.diagonal()
    group = 0 if quantize is None else quantize.group or columns
    # whoever looks ahead must see weights that are up to date
    ends = _cuts(columns, block, every if choose else 1, group or 1)
    loss = w.new_zeros(rows)
    for start, stop in ends:
        errors = w.new_empty(stop - start, rows)
        for j in range(start, stop):
            if choose and j % every == 0:
                ahead = slice(j, min(j + every, columns))
                saliency = (w[ahead] / pivots[ahead, None]).square_().masked_fill_(~alive[ahead], -torch.inf)
                kept[ahead] = choose(w[ahead].T, saliency.T, j).T
            if quantize and j % group == 0:
                ahead = slice(j, min(j + group, columns))
                quantize.fit(w[ahead].T, kept[ahead].T, j)
            stays = kept[j] & alive[j]
            settled = torch.where(stays, w[j], 0)
            if quantize:
                settled = torch.where(stays, quantize.column(settled, stays, j, float(pivots[j])), 0)
            error = errors[j - start] = (w[j] - settled) / pivots[j]
            loss += error.square()
            w[j] = settled
            w[j + 1 : stop].addr_(factor[j, j + 1 : stop], error, alpha=-1)
        w[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return Swept(w.T.to(weight.dtype).contiguous(), kept.T.contiguous(), loss)


def _cuts(columns: int, block: int, *steps: int) -> list[tuple[int, int]]:
    """Spans of about ``block`` columns such that nothing that starts at a multiple of one of ``steps`` crosses an end."""
    ends, start = [], 0
    while start < columns:
        stop = start + block
        while any(stop % step for step in steps):
            stop += min(step - stop % step for step in steps if stop % step)
        ends.append((start, min(stop, columns)))
        start = stop
    return ends
