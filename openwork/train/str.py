"""STR: every layer learns its own soft threshold, and with it how sparse it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.allocation import Allocation, Global, allocation
from openwork.connections import Connections, LatentConnections
from openwork.method import Method, check_fraction, method
from openwork.plan import Row, wanted_total
from openwork.positions import where
from openwork.schedules import Polynomial
from openwork.selection import best
from openwork.sparsifier import Sparsifier, Training
from openwork.train.deep_r import learning_rate
from openwork.train.dnw import DNW
from openwork.train.gmp import GMP

Pairs = list[tuple[Row, LatentConnections]]


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

    ``w`` is the proximal step of ``g * |.|_1`` at ``theta``. What opens the thresholds in the paper is weight decay on ``s``, of
    a strength that has to be searched for every network, length of run and sparsity. Here a common rise does: after every step
    all ``g`` grow by the same amount, until no more weights are seen than gradual pruning would have left by then (:class:`GMP`):
    those of largest ``|theta| - g(s)`` in all layers. The loss closes a threshold where a layer cannot spare its weights, and the
    rise is common, so it is the others that pay. At ``until`` the number of connections is made exact in the same way, and the
    rest of the run trains those alone, from the values the network sees.

    Args:
        initial: ``s`` in the beginning; -5 for short runs (the paper's ImageNet runs take -3200 and a hundred epochs).
        decay: None (default) raises the thresholds on schedule; a number is the paper's weight decay of ``s``, and only at
            ``until`` is the count made exact. ``s`` follows plain gradient descent with the learning rate and, if there is one,
            the momentum of the parameter's group, so without a loss it is ``initial * exp(-sum of lr * decay / (1 - momentum))``:
            from -5, thresholds open when that sum comes near 5. The weight decay of ``theta`` is the optimizer's own.
        until: when the count is made exact, as a part of the run; 0.75.
        allocation: ``global`` ranks the margins ``|theta| - g(s)`` of all layers together, which is what was learned; any other
            splits the total in its own way.

    With thresholds that never open (``initial`` far below zero, ``decay=0``) this is one-shot magnitude pruning at ``until``.

    Differences from the paper: the rise, the exact count, and the training of what is left under a fixed mask.
    """

    shrinks: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    initial: float = -5.0
    decay: float | None = None
    until: float = 0.75
    allocation: str | Allocation = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("until", self.until)
        if self.decay is not None and self.decay < 0:
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
        for _, c in sparsifier.latents():
            outside = where(~c.mask)  # of masks that were given: what is not in them has no part in this
            c.write(outside, outside.new_zeros(len(outside), dtype=c.latent.dtype))
            sparsifier.state[f"s {c.name}"] = torch.tensor([self.initial, 0.0], dtype=torch.float64)
            c.shrink(_sigmoid(self.initial))

    def due(self, step: int) -> bool:
        return step <= self._last

    def before_step(self, sparsifier: Sparsifier, step: int) -> None:
        if step > self._last:
            return
        decay = self.decay or 0.0
        for _, c in sparsifier.latents():
            gradient = c.weight.parameter.grad
            if gradient is None:
                continue
            s, velocity = sparsifier.state[f"s {c.name}"].tolist()
            seen = c.latent.abs() > c.threshold
            pull = torch.where(seen, c.latent.sign() * gradient, 0).sum(dtype=torch.float64)
            slope = _sigmoid(s) * (1.0 - _sigmoid(s))
            # One overflow, as loss scaling produces now and then, must not stay in it for ever.
            velocity = _momentum(c) * velocity - slope * float(pull.nan_to_num(0, 0, 0)) + decay * s
            s -= learning_rate(c) * velocity
            sparsifier.state[f"s {c.name}"] = torch.tensor([s, velocity], dtype=torch.float64)
            gradient.masked_fill_(~seen, 0)

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        pairs = sparsifier.latents()
        if step < self._last:
            if self.decay is None:
                self._rise(sparsifier, pairs, step / self._last)
            for _, c in pairs:
                c.shrink(_sigmoid(float(sparsifier.state[f"s {c.name}"][0])))
            return
        margins = {row.name: c.weight.oriented(c.latent).abs() - c.threshold for row, c in pairs}
        for name, margin in margins.items():
            if not bool(margin.isfinite().all()):
                raise FloatingPointError(f"the latent weights of {name} hold NaN or infinity")
        chosen = best(sparsifier.plan, margins, within={row.name: c.mask for row, c in pairs})
        for row, c in pairs:
            positions = chosen[row.name]
            c.write(c.positions, c.values)  # what was seen is what the weights are from now on
            c.shrink(0.0)
            c.replace(positions)
            c.sleep(positions)

    def _rise(self, sparsifier: Sparsifier, pairs: Pairs, progress: float) -> None:
        """Raise the thresholds until no more weights are seen than at this part of the way to ``until``."""
        free, total = self._shared(pairs, progress)
        groups = [([c], _seen(row.numel, row.kept, progress)) for row, c in pairs if row.fixed]
        if isinstance(allocation(self.allocation), Global):
            groups.append(([c for _, c in free], total))
        else:
            counts = self._split(free, total, [c.weight.oriented(c.latent).abs() for _, c in free])
            groups += [([c], counts[row.name]) for row, c in free]
        for together, seen in groups:
            states = [sparsifier.state[f"s {c.name}"] for c in together]
            thresholds = [_sigmoid(float(s[0])) for s in states]
            margins = [
                c.latent.abs().double().flatten() - g for c, g in zip(together, thresholds, strict=True)
            ]
            if margins and (shift := _limit(torch.cat(margins), seen)) > 0:
                for s, g in zip(states, thresholds, strict=True):
                    s[0] = _logit(g + shift)

    def _shared(self, pairs: Pairs, progress: float) -> tuple[Pairs, int]:
        """The parameters that share the total, and how many of their weights are seen at this part of the way."""
        free = [(row, c) for row, c in pairs if not row.fixed]
        size = sum(row.numel for row, _ in free)
        return free, _seen(size, wanted_total(self, size), progress) if free else 0

    def _split(self, pairs: Pairs, total: int, scores: Sequence[Tensor]) -> dict[str, int]:
        if not pairs:
            return {}
        counts = allocation(self.allocation).counts([row.shape for row, _ in pairs], total, scores)
        return dict(zip((row.name for row, _ in pairs), counts, strict=True))

    def measures(self, sparsifier: Sparsifier) -> Mapping[str, float]:
        return {
            f"density that the network sees of {row.name}": float((c.values != 0).sum()) / row.numel
            for row, c in sparsifier.latents()
        }

    @property
    def _last(self) -> int:
        return max(1, math.floor(self.until * self.run_length + 1e-9))


def _seen(size: int, final: int, progress: float) -> int:
    """How many of ``size`` weights gradual pruning to ``final`` would have left."""
    return round(size - (size - final) * (1.0 - Polynomial(start=1.0).at(progress)))


def _limit(margins: Tensor, seen: int) -> float:
    """Half-way between the smallest margin that is to be seen and the largest that is not; minus infinity where all are."""
    if seen >= margins.numel():
        return -math.inf
    inside, outside = margins.topk(seen + 1).values[-2:].tolist() if seen else [float(margins.max())] * 2
    return 0.5 * (inside + outside)


def _logit(g: float) -> float:
    """What has ``g`` as its sigmoid; thresholds end below 1."""
    g = min(g, 1.0 - 1e-9)
    return math.log(g / (1.0 - g))


def _sigmoid(s: float) -> float:
    return 1.0 / (1.0 + math.exp(-s)) if s > -700 else 0.0


def _momentum(connections: Connections) -> float:
    """The momentum of a parameter's group, 0 where it has none."""
    groups = connections.optimizer.param_groups if connections.optimizer is not None else []
    parameter = connections.weight.parameter
    return next(
        (float(g.get("momentum", 0)) for g in groups if any(p is parameter for p in g["params"])), 0.0
    )
