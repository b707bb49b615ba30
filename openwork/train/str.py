"""STR: every layer learns its own soft threshold, and with it how sparse it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.allocation import Allocation, allocation, exact_counts
from openwork.connections import Connections, LatentConnections
from openwork.method import Method, check_fraction, method
from openwork.plan import Row, wanted_total
from openwork.positions import where
from openwork.sparsifier import Sparsifier, Training
from openwork.train.deep_r import learning_rate
from openwork.train.dnw import DNW
from openwork.train.gmp import GMP


@method(
    paper="Kusupati et al., Soft Threshold Weight Reparameterization for Learnable Sparsity, ICML 2020, arXiv 2002.03231",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class STR(DNW):
    """Soft threshold reparameterization: the split among layers is learned by gradient descent.

    Each parameter has dense weights ``theta`` and one number ``s``, trained together::

        w        = sign(theta) * max(|theta| - g(s), 0)          g(s) = sigmoid(s)
        dL/dtheta = dL/dw                                         where w is not zero, 0 elsewhere
        dL/ds     = -g'(s) * sum of sign(theta) * dL/dw            over the same places

    ``w`` is the proximal step of ``g * |.|_1`` at ``theta``. What opens the threshold is weight decay on ``s``, which pulls it
    from far below towards zero; the loss closes it where a layer cannot spare its weights. The sparsity cannot be asked for in
    this way, so at ``until`` one common shift of all thresholds makes the number of connections exact: the largest
    ``|theta| - g(s)`` of all layers stay, with the values the network sees. The rest of the run trains those alone.

    Args:
        initial: ``s`` in the beginning; -5 for short runs (the paper's ImageNet runs take -3200 and a hundred epochs).
        decay: weight decay of ``s``; 5e-4. ``s`` follows plain gradient descent with the learning rate and, if there is one, the
            momentum of the parameter's group, so without a loss it is ``initial * exp(-sum of lr * decay / (1 - momentum))``.
            The weight decay of ``theta`` is the optimizer's own; both decide how sparse the network gets by itself.
        until: when the count is made exact, as a part of the run; 0.75.
        allocation: ``global`` ranks the margins ``|theta| - g(s)`` of all layers together, which is what was learned; any other
            splits the total in its own way.

    With thresholds that never open (``initial`` far below zero, ``decay=0``) this is one-shot magnitude pruning at ``until``.

    Differences from the paper: the exact count, and the training of what is left under a fixed mask.
    """

    shrinks: ClassVar[bool] = True

    initial: float = -5.0
    decay: float = 5e-4
    until: float = 0.75
    allocation: str | Allocation = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("until", self.until)
        if self.decay < 0:
            raise ValueError(f"decay is at least 0; got {self.decay}")

    def limits(self) -> Iterable[tuple[Method, Method]]:
        if self.steps is not None:
            closed = dataclasses.replace(self, initial=-800.0, decay=0.0)
            moment = (self._last + 0.5) / self.steps
            shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(Training)}
            yield closed, GMP(**shared, begin=moment, until=moment)

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        return None

    def attached(self, sparsifier: Sparsifier) -> None:
        for _, c in self.latents(sparsifier):
            outside = where(~c.mask)  # of masks that were given: what is not in them has no part in this
            c.write(outside, outside.new_zeros(len(outside), dtype=c.latent.dtype))
            sparsifier.state[f"s {c.name}"] = torch.tensor([self.initial, 0.0], dtype=torch.float64)
            c.shrink(_sigmoid(self.initial))

    def due(self, step: int) -> bool:
        return step <= self._last

    def before_step(self, sparsifier: Sparsifier, step: int) -> None:
        if step > self._last:
            return
        for _, c in self.latents(sparsifier):
            gradient = c.weight.parameter.grad
            if gradient is None:
                continue
            s, velocity = sparsifier.state[f"s {c.name}"].tolist()
            seen = c.latent.abs() > c.threshold
            pull = torch.where(seen, c.latent.sign() * gradient, 0).sum(dtype=torch.float64)
            slope = _sigmoid(s) * (1.0 - _sigmoid(s))
            # One overflow, as loss scaling produces now and then, must not stay in it for ever.
            velocity = _momentum(c) * velocity - slope * float(pull.nan_to_num(0, 0, 0)) + self.decay * s
            s -= learning_rate(c) * velocity
            sparsifier.state[f"s {c.name}"] = torch.tensor([s, velocity], dtype=torch.float64)
            gradient.masked_fill_(~seen, 0)

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        if step < self._last:
            for _, c in self.latents(sparsifier):
                c.shrink(_sigmoid(float(sparsifier.state[f"s {c.name}"][0])))
            return
        pairs = self.latents(sparsifier)
        rows = [row for row, _ in pairs if not row.fixed]
        margins = [c.weight.oriented(c.latent).abs() - c.threshold for row, c in pairs if not row.fixed]
        caps = [c.kept for row, c in pairs if not row.fixed]
        total = min(wanted_total(self, sum(row.numel for row in rows)), sum(caps)) if rows else 0
        counts = allocation(self.allocation).counts([row.shape for row in rows], total, margins)
        counts = exact_counts(counts, caps, total)
        wanted = dict(zip((row.name for row in rows), counts, strict=True))
        chosen: list[tuple[LatentConnections, Tensor]] = [
            (c, c.strongest_latent(min(wanted.get(row.name, row.kept), c.kept), of_active=True))
            for row, c in pairs
        ]
        for c, positions in chosen:
            c.write(c.positions, c.values)  # what was seen is what the weights are from now on
            c.shrink(0.0)
            c.replace(positions)
            c.sleep(positions)

    def measures(self, sparsifier: Sparsifier) -> Mapping[str, float]:
        return {
            f"density that the network sees of {row.name}": float((c.values != 0).sum()) / row.numel
            for row, c in self.latents(sparsifier)
        }

    @property
    def _last(self) -> int:
        return max(1, math.floor(self.until * self.run_length + 1e-9))


def _sigmoid(s: float) -> float:
    return 1.0 / (1.0 + math.exp(-s)) if s > -700 else 0.0


def _momentum(connections: Connections) -> float:
    """The momentum of a parameter's group, 0 where it has none."""
    groups = connections.optimizer.param_groups if connections.optimizer is not None else []
    parameter = connections.weight.parameter
    return next(
        (float(g.get("momentum", 0)) for g in groups if any(p is parameter for p in g["params"])), 0.0
    )
