"""One model's delta, thinned parameter by parameter, so that never more than one is in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from openwork.allocation import allocation, exact_counts
from openwork.deltas import delta
from openwork.merger.contract import Merging
from openwork.patterns import pattern
from openwork.weights import Weight, prunable


@dataclass(frozen=True)
class Left:
    """What is left of one parameter's delta.

    Attributes:
        change: in float64, of the parameter's shape.
        mask: boolean of that shape, what was kept; None where the whole delta was.
        of: places that could have been kept.
        size: root mean square of the delta before.
        zeros: places of it that fell on zeros of the base.
    """

    change: Tensor
    mask: Tensor | None
    of: int
    size: float
    zeros: int = 0

    @property
    def kept(self) -> int:
        """How many places were kept."""
        return self.of if self.mask is None else int(self.mask.sum())


class Thinning:
    """How the delta of one tuned model is thinned.

    Args:
        method: says how.
        model: the base.
        tuned: of every parameter, see :func:`openwork.merger.matching.matched`.
        number: which of the tuned models; each has random masks of its own.
        keep_zeros: whether zeros of the base's weight matrices stay zero.
        inputs: parameter name -> mean square of every input ``[in * prod(kernel)]``; a change then counts times its root.

    Attributes:
        weights: the parameters whose deltas are thinned, by name; of the others they are whole.

    Raises:
        ValueError: a glob of the method matches nothing, or its pattern does not fit.
    """

    def __init__(
        self,
        method: Merging,
        model: nn.Module,
        tuned: Mapping[str, Tensor],
        *,
        number: int = 0,
        keep_zeros: bool = True,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.method, self.tuned, self.number, self.keep_zeros = method, tuned, number, keep_zeros
        self._inputs = inputs or {}
        self._base = dict(model.named_parameters())
        self.weights = thinnable(method, model)
        self._counts = self._split()

    def left(self, name: str) -> Left:
        """What is left of the delta of one parameter."""
        p = self._base[name]
        change = delta(self.tuned[name], p)
        size = float(change.square().mean().sqrt()) if change.numel() else 0.0
        weight = self.weights.get(name)
        if weight is None:
            return Left(change, None, change.numel(), size)
        allowed = self.allowed(name)
        oriented = weight.oriented(change)
        mask = self.mask(name, self._felt(name, oriented))
        of = int(allowed.sum())
        thin = self.method.thin(name, oriented, mask, of)
        lost = int(((oriented != 0) & ~allowed).sum())
        return Left(weight.restored(thin), weight.restored(mask), of, size, lost)

    def mask(self, name: str, change: Tensor | None = None) -> Tensor:
        """Boolean ``[out, in, *kernel]``: what is kept of a parameter. Methods that draw need no ``change``."""
        allowed = self.allowed(name)
        if change is None:
            change = torch.zeros(allowed.shape, dtype=torch.float64, device=allowed.device)
        generator = self.method.generator(f"{self.number} {name}")
        return self.method.mask(change, allowed, self._counts[name], generator)

    def allowed(self, name: str) -> Tensor:
        """Boolean ``[out, in, *kernel]``: where a parameter may change."""
        p, weight = self._base[name], self.weights[name]
        every = torch.ones(weight.shape, dtype=torch.bool, device=p.device)
        return weight.oriented(p.detach()) != 0 if self.keep_zeros else every

    def _split(self) -> dict[str, int]:
        """How many places of each parameter's delta are kept."""
        method, counts, shared = self.method, dict[str, int](), list[str]()
        places = {name: int(self.allowed(name).sum()) for name in self.weights}
        for name, most in places.items():
            fitting = [sparsity for glob, sparsity in method.overrides.items() if fnmatchcase(name, glob)]
            if fitting:
                counts[name] = round((1.0 - fitting[-1]) * most)
            else:
                shared.append(name)
        if not shared:
            return counts
        most = sum(places[name] for name in shared)
        total = round((1.0 - method.sparsity) * most) if method.kept is None else method.kept
        if not 0 <= total <= most:
            raise ValueError(f"kept={total} was asked for, and the deltas have {most} places in all")
        rule, shapes = allocation(method.allocation), [self.weights[name].shape for name in shared]
        sizes = [math.prod(shape) for shape in shapes]
        if rule.needs_scores:
            wanted = [
                float(count) for count in rule.counts(shapes, total, [self._size(name) for name in shared])
            ]
        else:  # as if the base were dense, then the part of it that may change
            dense = rule.counts(shapes, round(total / max(1, most) * sum(sizes)))
            wanted = [c * places[n] / size for c, n, size in zip(dense, shared, sizes, strict=True)]
        exact = exact_counts(wanted, [places[name] for name in shared], total)
        return counts | dict(zip(shared, exact, strict=True))

    def _size(self, name: str) -> Tensor:
        change = self.weights[name].oriented(delta(self.tuned[name], self._base[name]))
        return self._felt(name, change).abs().masked_fill(~self.allowed(name), 0)

    def _felt(self, name: str, change: Tensor) -> Tensor:
        """A delta by what it does to the outputs, where the inputs are known."""
        square = self._inputs.get(name)
        if square is None:
            return change
        if square.numel() * change.shape[0] != change.numel():
            raise ValueError(f"{name} has {change[0].numel()} inputs; got mean squares of {square.numel()}")
        return change * square.to(change).sqrt().view(1, *change.shape[1:])


def thinnable(method: Merging, model: nn.Module) -> dict[str, Weight]:
    """The parameters whose deltas are thinned: all of two axes or more that are not excluded and that the pattern fits."""
    weights = [w for w in prunable(model) if w.parameter.dim() > 1]
    for option in ("exclude", "overrides"):
        for glob in getattr(method, option):
            if not any(fnmatchcase(w.name, glob) for w in weights):
                names = ", ".join(w.name for w in weights[:3])
                raise ValueError(f"{option}: {glob!r} matches no weight matrix; there are {names}, ...")
    return {
        w.name: w
        for w in weights
        if not any(fnmatchcase(w.name, glob) for glob in method.exclude)
        and not pattern(method.pattern).misfit(w.shape)
    }
