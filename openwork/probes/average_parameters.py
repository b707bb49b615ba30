"""The average-parameter law: what a sparse pre-training run costs, how long it is, and which loss to expect of it.

The loss that sparse pre-training ends with is set by the *average* number of active parameters over its tokens
(Jin et al., The Journey Matters, ICLR 2025, arXiv 2501.12486)::

    L(Nbar, D) = E + A / Nbar ** a + B / D ** b        Nbar = (1/D) * sum of N(t) over the D tokens

so a pruned model equals in loss a dense one of size ``Nbar``, trained at the same cost, and is smaller to deploy. Embeddings do
not count as parameters; a run costs ``C = 6 * Nbar * D`` multiplications and additions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.train.gmp import GMP

HUBER = 1e-3
"""Residuals of ``log loss`` beyond this count linearly, as in Hoffmann et al. (2022)."""

STARTS = 6
"""How many of the best points of the grid a fit starts from."""

OVER_CUBIC = 0.75
"""Mean of the cubic of gradual pruning over its window: that part of the final sparsity."""


@dataclass(frozen=True)
class Pretraining:
    """A sparse pre-training run of given cost. Made by :func:`pretraining`.

    Attributes:
        parameters: of the dense model it starts from, embeddings not counted.
        sparsity: at the end.
        compute: floating-point operations of the run.
        tokens: how many it trains on.
        begin, until: when gradual pruning begins and ends, as parts of the *tokens*.
        average: mean number of active parameters over the tokens: the size of the dense model of equal loss and cost.
    """

    parameters: float
    sparsity: float
    compute: float
    tokens: float
    begin: float
    until: float
    average: float

    @property
    def final(self) -> float:
        """Active parameters at the end: what is deployed."""
        return (1.0 - self.sparsity) * self.parameters

    def gmp(self, steps: int, every: int = 100) -> GMP:
        """The method that prunes in this way in a run of ``steps`` steps of equally many tokens."""
        return GMP(sparsity=self.sparsity, steps=steps, every=every, begin=self.begin, until=self.until)


def pretraining(
    parameters: float, compute: float, sparsity: float, window: tuple[float, float] = (0.25, 0.75)
) -> Pretraining:
    """Plan a run that is dense at first, prunes along the cubic of :class:`openwork.GMP`, and ends with a sparse phase.

    With compute ``c1, c2, c3`` before, in and after the window, and final sparsity ``f``, the phases have lengths ``c1``,
    ``c2 / (1 - 0.75 f)`` and ``c3 / (1 - f)`` in units of ``C / 6N`` tokens: a part of the compute is not that part of the run.

    Args:
        parameters: of the dense model, embeddings not counted.
        compute: floating-point operations to spend.
        sparsity: at the end, in [0, 1).
        window: when pruning begins and ends, as parts of the compute; a quarter and three quarters, nearly the best of about 80
            schedules tried in the paper.

    Raises:
        ValueError: an argument is out of its range.
    """
    begin, until = window
    if not 0.0 <= begin <= until <= 1.0:
        raise ValueError(f"window is a part of the compute, 0 <= begin <= until <= 1; got {begin} to {until}")
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity is a fraction in [0, 1); got {sparsity}")
    if parameters <= 0 or compute <= 0:
        raise ValueError(
            f"parameters and compute are positive; got parameters={parameters}, compute={compute}"
        )
    lengths = (begin, (until - begin) / (1.0 - OVER_CUBIC * sparsity), (1.0 - until) / (1.0 - sparsity))
    whole = sum(lengths)
    return Pretraining(
        parameters=parameters,
        sparsity=sparsity,
        compute=compute,
        tokens=whole * compute / (6.0 * parameters),
        begin=lengths[0] / whole,
        until=(lengths[0] + lengths[1]) / whole,
        average=parameters / whole,
    )


@dataclass(frozen=True)
class AverageLaw:
    """``L(Nbar, D) = E + A / Nbar ** a + B / D ** b``, see :mod:`openwork.probes.average_parameters`.

    Attributes:
        floor: ``E``, the loss of no model.
        size, size_power: ``A`` and ``a``.
        data, data_power: ``B`` and ``b``.
    """

    floor: float
    size: float
    size_power: float
    data: float
    data_power: float

    def loss(self, average: float, tokens: float) -> float:
        """The loss expected of ``average`` active parameters and so many tokens. Takes a dense model as well."""
        return (
            self.floor
            + self.size / math.pow(average, self.size_power)
            + self.data / math.pow(tokens, self.data_power)
        )

    def of(self, run: Pretraining) -> float:
        """The loss expected of a planned run."""
        return self.loss(run.average, run.tokens)


def fit_average_law(average: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> AverageLaw:
    """Fit the law to runs, dense and sparse ones together.

    Minimises the Huber loss of the residuals of ``log L``, with L-BFGS from the best points of a grid, as in Hoffmann et al.,
    Training Compute-Optimal Large Language Models, 2022, arXiv 2203.15556.

    Args:
        average: mean number of active parameters of each run over its tokens (of a dense one, its size).
        tokens: of each run.
        losses: what each ended with.

    Raises:
        ValueError: the lists differ in length, have fewer than five runs, or hold a number that is not positive and finite.
    """
    if not len(average) == len(tokens) == len(losses) or len(losses) < 5:
        raise ValueError(
            "five coefficients need at least five runs, each with average, tokens and loss; got "
            f"{len(average)}, {len(tokens)} and {len(losses)}"
        )
    runs = torch.tensor([list(average), list(tokens), list(losses)], dtype=torch.float64)
    if not bool((runs.isfinite() & (runs > 0)).all()):
        raise ValueError("average, tokens and losses are positive, finite numbers")
    log_n, log_d, log_loss = runs.log()

    def distance(point: Tensor) -> Tensor:
        """Of ``[..., 5]`` points (log E, log A, a, log B, b) from the runs."""
        log_e, log_a, a, log_b, b = (c.unsqueeze(-1) for c in point.unbind(-1))
        terms = [log_a - a * log_n, log_b - b * log_d, log_e.expand(*log_e.shape[:-1], len(losses))]
        predicted = torch.stack(torch.broadcast_tensors(*terms)).logsumexp(0)
        residuals = (predicted - log_loss).abs()
        return torch.where(residuals < HUBER, residuals.square() / 2, HUBER * (residuals - HUBER / 2)).sum(-1)

    # A and B are given by the share of the loss that their terms have in the middle of the runs, whatever the units.
    least, middle_n, middle_d = float(log_loss.min()), float(log_n.mean()), float(log_d.mean())
    shares, powers = (0.02, 0.1, 0.4), (0.1, 0.25, 0.4, 0.6, 1.0)
    grid = torch.tensor(
        [
            (
                least + math.log(e),
                least + math.log(p) + a * middle_n,
                a,
                least + math.log(q) + b * middle_d,
                b,
            )
            for e, p, q, a, b in itertools.product((0.3, 0.6, 0.9), shares, shares, powers, powers)
        ],
        dtype=torch.float64,
    )
    best = grid[distance(grid).argsort(stable=True)[:STARTS]]
    found = torch.stack([_descended(start, distance) for start in best])
    log_e, log_a, a, log_b, b = found[distance(found).argmin()].tolist()
    return AverageLaw(math.exp(log_e), math.exp(log_a), a, math.exp(log_b), b)


def _descended(start: Tensor, distance: Callable[[Tensor], Tensor]) -> Tensor:
    """Where L-BFGS comes to from ``start``."""
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=500,
        history_size=20,
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        # Residuals are of the order of the Huber width: scaled, so that tolerances mean something.
        value = distance(point) / HUBER**2
        value.backward()
        return value

    optimizer.step(closure)
    return point.detach()
