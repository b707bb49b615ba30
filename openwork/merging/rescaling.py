"""By what to divide the changes that DARE keeps, when so many are dropped that the unbiased divisor is mostly noise.

With a share ``s`` of the changes kept, any divisor ``q`` from ``s`` (unbiased) to 1 (no rescaling) may be best: a larger one
makes what is kept count too little and its noise smaller. Deng et al., DARE the Extreme, ICLR 2025, arXiv 2410.09344.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def searched(loss: Callable[[float], float], share: float, *, coarse: int = 10, fine: int = 10) -> float:
    """The divisor of least loss: a coarse grid from ``share`` to 1, then a finer one around its best.

    Args:
        loss: of a model merged with ``DARE(rescale=q)``, on validation data; or how far its outputs are from those of the tuned
            model, which takes no labels. Average it over a few seeds: one mask proves little.
        share: of the changes that is kept.
        coarse, fine: points of the two grids.
    """
    if not 0.0 < share <= 1.0 or coarse < 2 or fine < 2:
        raise ValueError(f"share is in (0, 1] and grids have 2 points; got {share}, {coarse} and {fine}")
    grid = _between(share, 1.0, coarse)
    losses = [loss(q) for q in grid]
    best = min(range(coarse), key=losses.__getitem__)
    low, high = grid[max(0, best - 1)], grid[min(coarse - 1, best + 1)]
    near = _between(low, high, fine + 2)[1:-1]
    found = {grid[best]: losses[best], **{q: loss(q) for q in near}}
    return min(found, key=found.__getitem__)


def bounded(
    change: Tensor,
    inputs: Tensor,
    share: float,
    *,
    eta: float = 0.5,
    confidence: float = 0.95,
    step: float = 1e-3,
) -> float:
    """The divisor for one layer that minimises the paper's bound on how far its outputs move; the mean over the rows.

    For each row, with ``c_j = delta_j * mean(x_j)``, ``p = 1 - share`` and ``Phi(p) = (1 - 2p) / ln((1 - p) / p)``, the least::

        | eta * (1 - share / q) * sum c_j  +  eta^2 * Phi(p) * sum c_j^2 / (4 q^2)  +  ln(2 / (1 - confidence)) |

    Args:
        change: the delta ``[out, in]``, with the bias as one more column if there is one.
        inputs: mean of every input ``[in]``, 1 for the bias.
        share: of the changes that is kept, below 1.
        eta: 0.5; the paper chooses it on validation data, 0.27 to 1.
        confidence: 0.95.
        step: of ``q``.

    Differences from the authors' code: every row takes its least value, where they stop once four rows in five no longer gain.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share is in (0, 1); got {share}")
    p = 1.0 - share
    phi = 0.5 if abs(p - 0.5) < 1e-9 else (1.0 - 2.0 * p) / math.log((1.0 - p) / p)
    c = change.double() * inputs.double()
    q = torch.arange(share, 1.0, step, dtype=torch.float64).unsqueeze(1)
    bias = eta * (1.0 - share / q) * c.sum(1)
    noise = eta**2 * phi * c.square().sum(1) / (4.0 * q.square())
    bound = (bias + noise + math.log(2.0 / (1.0 - confidence))).abs()
    return float(q.flatten()[bound.argmin(0)].mean())


def _between(first: float, last: float, points: int) -> list[float]:
    return [*(first + (last - first) * i / (points - 1) for i in range(points - 1)), last]
