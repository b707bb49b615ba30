"""Structured continuous sparsification: grow a network from a small seed, by gates that harden as they are used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.allocation import Allocation
from openwork.connections import LatentConnections
from openwork.grid import top_k
from openwork.method import check_fraction, method
from openwork.patterns import Pattern
from openwork.plan import Row, wanted_total
from openwork.selection import best
from openwork.sparsifier import Sparsifier
from openwork.train.dnw import DNW


@method(
    paper="Yuan, Savarese & Maire, Growing Efficient Deep Networks by Structured Continuous Sparsification, ICLR 2021, "
    "arXiv 2007.15353",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class GrowSCS(DNW):
    """Structured continuous sparsification: in every step units are drawn that work, each with a probability that is learned.

    A unit ``i``, or whatever else the pattern keeps together, has a logit ``s`` and a count ``n`` of the steps in which it has
    been at work. In each step, with ``theta`` the dense weights and ``T`` the step of the last draw::

        p_i = sigmoid(beta_i s_i)              beta_i = hardness ** (n_i / T)     soft while it is new, hard once it is old
        q_i ~ Bernoulli(p_i)                   w_i = q_i p_i theta_i              the others take no part in the step
        s_i <- s_i - rate * p_i (1 - p_i) d/dp_i (L(w) + lambda * sum of p)       lambda = pressure * (size - target)

    ``size`` is the part of the network that is expected to work, so a network smaller than its target grows and a larger one is
    pruned. It starts from ``seed_size``: that part of the units has ``s = logit``, the others ``-logit``; those are drawn now and
    then, and stay if they are of use. At ``T`` the gates become hard: the highest logits stay for good, as many as
    ``sparsity`` says, with the weights that were seen; the rest of the run trains them.

    Args:
        seed_size: part of the units at work in the beginning; 0.25.
        logit: of those; 2.
        hardness: ``beta`` of a unit that was at work in every step; 100.
        rate: of the logits' descent; 1.
        pressure: towards the target size; 1. Short runs want more, because units harden.
        until: ``T`` as a part of the run; 0.75.
        pattern: ``groups 0``, output units and channels. Exclude the last layer: its units are the answers.
        allocation: ``global`` ranks the logits of all layers, so that their widths are learned; ``Global(floor=...)`` keeps
            layers from being emptied, and any other splits the total in its own way. Counts are rounded down to whole units.

    Until ``T`` the model shows the network that was drawn. Units that rest have no weights; their biases are left alone. What is
    drawn is small, and computed dense all the same; :meth:`openwork.Sparsifier.summary` tells the mean size at work, which
    is what the training would cost with kernels that leave out the rest.

    The structure is the paper's, the constants and the form of ``lambda`` are not (it gives no rule that would fit all budgets).
    Whole layers have no gate of their own.
    """

    shrinks: ClassVar[bool] = True

    sparsity: float = 0.5
    seed_size: float = 0.25
    logit: float = 2.0
    hardness: float = 100.0
    rate: float = 1.0
    pressure: float = 1.0
    until: float = 0.75
    pattern: str | Pattern = "groups 0"
    allocation: str | Allocation = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("seed_size", self.seed_size)
        check_fraction("until", self.until)
        if self.hardness < 1 or min(self.logit, self.rate, self.pressure) < 0:
            raise ValueError(
                "hardness is at least 1, and logit, rate and pressure at least 0; got "
                f"{self.hardness}, {self.logit}, {self.rate} and {self.pressure}"
            )

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        return None

    def due(self, step: int) -> bool:
        return step <= self._last

    def attached(self, sparsifier: Sparsifier) -> None:
        for row, c in sparsifier.latents():
            grid = row.pattern.grid(row.shape)
            lots = torch.rand(grid.rows, grid.competitors, generator=self.generator(row.name))
            chosen = top_k(lots, max(1, round(self.seed_size * grid.competitors)))
            sparsifier.state[f"logit {row.name}"] = torch.where(chosen, self.logit, -self.logit).double()
            sparsifier.state[f"work {row.name}"] = torch.zeros(chosen.shape, dtype=torch.int64)
            self._draw(sparsifier, row, c)

    def before_step(self, sparsifier: Sparsifier, step: int) -> None:
        if step > self._last:
            return
        excess = self.expected_size(sparsifier) - self._target(sparsifier)
        for row, c in sparsifier.latents():
            gradient = c.weight.parameter.grad
            if gradient is None:
                continue
            logit, drawn = sparsifier.state[f"logit {row.name}"], sparsifier.state[f"drawn {row.name}"]
            p = self._likely(sparsifier, row)
            pull = row.pattern.grid(row.shape).pool(c.weight.oriented(gradient * c.latent)).double().cpu()
            # One overflow, as loss scaling produces now and then, must not stay in it for ever.
            pull = (drawn * pull).nan_to_num(0, 0, 0) + self.pressure * excess
            sparsifier.state[f"logit {row.name}"] = logit - self.rate * pull * p * (1 - p)
            gradient.mul_(c.gates())

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        pairs = sparsifier.latents()
        for row, _ in pairs:
            drawn = sparsifier.state[f"drawn {row.name}"]
            sparsifier.state[f"work {row.name}"] = sparsifier.state[f"work {row.name}"] + drawn
        if step < self._last:
            for row, c in pairs:
                self._draw(sparsifier, row, c)
            return
        chosen = self._final(sparsifier)
        for row, c in pairs:
            p = self._likely(sparsifier, row)
            c.gate(p)
            c.write(c.positions, c.values)  # as they were seen when at work
            c.gate(torch.ones_like(p))
            c.replace(chosen[row.name])
            c.sleep(chosen[row.name])

    def expected_size(self, sparsifier: Sparsifier) -> float:
        """The part of all connections that is expected to be at work in a step."""
        rows = sparsifier.plan.sparse
        atoms = [row.pattern.grid(row.shape).atom for row in rows]
        likely = [float(self._likely(sparsifier, row).sum()) for row in rows]
        return sum(n * p for n, p in zip(atoms, likely, strict=True)) / sum(row.numel for row in rows)

    def measures(self, sparsifier: Sparsifier) -> Mapping[str, float]:
        rows, draws = sparsifier.plan.sparse, max(1, min(sparsifier.step_count, self._last))
        worked = sum(
            float(sparsifier.state[f"work {row.name}"].sum()) * row.pattern.grid(row.shape).atom
            for row in rows
        )
        return {"mean size at work while drawing": worked / draws / sum(row.numel for row in rows)}

    def _draw(self, sparsifier: Sparsifier, row: Row, c: LatentConnections) -> None:
        p = self._likely(sparsifier, row)
        drawn = torch.rand(p.shape, generator=sparsifier.generator, dtype=torch.float64) < p
        sparsifier.state[f"drawn {row.name}"] = drawn
        c.gate(drawn * p)

    def _final(self, sparsifier: Sparsifier) -> dict[str, Tensor]:
        ranked = {}
        for row, c in sparsifier.latents():
            grid, logit = row.pattern.grid(row.shape), sparsifier.state[f"logit {row.name}"]
            spread = grid.unview(logit.unsqueeze(-1).expand(-1, -1, grid.atom), row.shape)
            ranked[row.name] = spread.to(c.device)
        return best(sparsifier.plan, ranked)

    def _heat(self, sparsifier: Sparsifier, row: Row) -> Tensor:
        worked = sparsifier.state[f"work {row.name}"].double()
        return (math.log(self.hardness) / self._last * worked).exp()

    def _likely(self, sparsifier: Sparsifier, row: Row) -> Tensor:
        return (self._heat(sparsifier, row) * sparsifier.state[f"logit {row.name}"]).sigmoid()

    def _target(self, sparsifier: Sparsifier) -> float:
        """The part of all connections that was asked for, before it is rounded to whole units."""
        rows = sparsifier.plan.sparse
        total = wanted_total(self, sum(row.numel for row in rows if not row.fixed))
        return (total + sum(row.kept for row in rows if row.fixed)) / sum(row.numel for row in rows)

    @property
    def _last(self) -> int:
        return max(1, math.floor(self.until * self.run_length + 1e-9))
