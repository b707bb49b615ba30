"""How many connections each parameter keeps.

At a fixed total the split among layers decides most of the accuracy of a sparse network. An allocation turns a total into
exact integer counts, one for each parameter, that sum to the total. Two families:

- from shapes alone: :class:`Uniform`, :class:`UniformPlus`, :class:`ER`, :class:`ERK`, :class:`Balanced`, :class:`Pyramid`, and
  :class:`Like`, the split of another network;
- from scores: :class:`Global`, :class:`LAMP` and :class:`Deviation` rank the connections of all parameters against one another.

Shapes are ``[out, in, *kernel]``. Everything here is a pure function; nothing is changed in place.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.grid import Shape, top_k


def exact_counts(wanted: Sequence[float], caps: Sequence[int], total: int) -> list[int]:
    """Round ``wanted`` counts to integers that sum to exactly ``total`` and respect ``caps`` (largest remainder first,
    ties to the first parameter).

    Raises:
        ValueError: ``total`` does not lie between 0 and the sum of ``caps``.
    """
    if not 0 <= total <= sum(caps):
        raise ValueError(f"cannot keep {total} of {sum(caps)} connections")
    counts = [min(max(math.floor(w + 1e-9), 0), cap) for w, cap in zip(wanted, caps, strict=True)]
    order = sorted(range(len(caps)), key=lambda i: (counts[i] - wanted[i], i))
    missing = total - sum(counts)
    while missing:
        step = 1 if missing > 0 else -1
        for i in order if step > 0 else reversed(order):
            if missing and 0 <= counts[i] + step <= caps[i]:
                counts[i] += step
                missing -= step
    return counts


class Allocation(ABC):
    """A rule that splits a total among parameters. Values are small, frozen, printable and comparable."""

    needs_scores = False
    """Whether :meth:`counts` looks at scores."""

    @abstractmethod
    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        """How many connections each parameter keeps.

        Args:
            shapes: shape of each parameter, ``[out, in, *kernel]``, in order from input to output.
            total: connections kept in all of them together.
            scores: for allocations that rank: one tensor a parameter, one entry a connection, higher = keep.

        Returns:
            One integer a parameter, none above its size, summing to ``total``.
        """


@dataclass(frozen=True)
class Densities(Allocation):
    """Base of the allocations that come from shapes alone: densities proportional to :meth:`raw`, cut at dense."""

    @abstractmethod
    def raw(self, shape: Shape) -> float:
        """The density of a parameter, up to a factor common to all."""

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        return _proportional(
            [self.raw(shape) for shape in shapes], [math.prod(shape) for shape in shapes], total
        )


def _proportional(raw: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Counts ``min(size, factor * raw * size)`` that sum to ``total``.

    A layer whose share would exceed its size is dense, and what it cannot hold goes to the others. Each round makes the
    layers of largest ``raw`` dense and solves the factor for the rest again; at most one round a layer.
    """
    dense: set[int] = set()
    while True:
        open_layers = [i for i in range(len(sizes)) if i not in dense]
        left = total - sum(sizes[i] for i in dense)
        weight = sum(raw[i] * sizes[i] for i in open_layers)
        factor = left / weight if weight else 0.0
        overfull = [i for i in open_layers if factor * raw[i] > 1.0 + 1e-12]
        if not overfull:
            wanted = [
                float(sizes[i]) if i in dense else factor * raw[i] * sizes[i] for i in range(len(sizes))
            ]
            return exact_counts(wanted, sizes, total)
        highest = max(raw[i] for i in overfull)
        dense.update(i for i in overfull if raw[i] == highest)


@dataclass(frozen=True)
class Uniform(Densities):
    """The same density everywhere."""

    def raw(self, shape: Shape) -> float:
        return 1.0


@dataclass(frozen=True)
class ER(Densities):
    """Erdos-Renyi: density proportional to ``(out + in) / (out * in)`` (Mocanu et al., 2018).

    Thin layers stay dense, wide ones become sparse. Kernel sizes do not count.
    """

    def raw(self, shape: Shape) -> float:
        return sum(shape[:2]) / math.prod(shape[:2])


@dataclass(frozen=True)
class ERK(Densities):
    """Erdos-Renyi with kernels: density proportional to ``(sum of the shape / product of the shape) ** power``
    (Evci et al., RigL, 2020).

    Args:
        power: 1 (default) is ERK, 0 is uniform.
    """

    power: float = 1.0

    def raw(self, shape: Shape) -> float:
        return float((sum(shape) / math.prod(shape)) ** self.power)


@dataclass(frozen=True)
class Balanced(Densities):
    """The same number of connections in every layer (Gadhikar et al., 2023).

    Unlike the published code, what a layer is too small to hold is given to the others, so the budget is met.
    """

    def raw(self, shape: Shape) -> float:
        return 1.0 / math.prod(shape)


@dataclass(frozen=True)
class UniformPlus(Allocation):
    """Uniform, except that the first convolution is dense and the last layer keeps at least a fifth (Gale et al., 2019).

    Args:
        last: least density of the last layer; 0.2 as in the source.
    """

    last: float = 0.2

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        sizes = [math.prod(shape) for shape in shapes]
        fixed: dict[int, int] = {}
        if len(shapes) > 1 and len(shapes[0]) > 2:
            fixed[0] = sizes[0]
        if len(shapes) > 1 and total < self.last * sum(sizes):
            fixed[len(sizes) - 1] = round(self.last * sizes[-1])
        left = total - sum(fixed.values())
        free = [i for i in range(len(sizes)) if i not in fixed]
        if left < 0:
            raise ValueError(
                f"uniform_plus keeps {sum(fixed.values())} connections in the first and last layer alone, {total} were asked "
                "for in all: use allocation='erk' or a lower sparsity"
            )
        rest = dict(zip(free, _proportional([1.0] * len(free), [sizes[i] for i in free], left), strict=True))
        return [fixed.get(i, rest.get(i, 0)) for i in range(len(sizes))]


@dataclass(frozen=True)
class Pyramid(Allocation):
    """Density ``x ** l`` for the l-th layer from the input, with the ``x`` that meets the total (Liu et al., 2022)."""

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        sizes = [math.prod(shape) for shape in shapes]

        def kept(x: float) -> list[float]:
            return [size * x ** (depth + 1) for depth, size in enumerate(sizes)]

        return exact_counts(kept(_bisect(lambda x: sum(kept(x)), total)), sizes, total)


@dataclass(frozen=True)
class Like(Allocation):
    """The split of a topology that is there already: one that SNIP chose, that STR learned, or of a published network
    (Liu et al., 2022, call it the SNIP ratio).

    Args:
        densities: one a parameter, in order of appearance; for another total all are multiplied by one factor, and cut at dense.
    """

    densities: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0.0 <= density <= 1.0 for density in self.densities):
            raise ValueError(f"densities are fractions in [0, 1]; got {list(self.densities)}")

    @classmethod
    def of(cls, masks: Mapping[str, Tensor]) -> Like:
        """The split of ``masks``, as every verb returns them."""
        return cls(tuple(float(mask.sum()) / mask.numel() for mask in masks.values()))

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        if len(shapes) != len(self.densities):
            raise ValueError(
                f"the split is that of {len(self.densities)} parameters, and there are {len(shapes)}: cover the same ones"
            )
        return _proportional(self.densities, [math.prod(shape) for shape in shapes], total)


@dataclass(frozen=True)
class Global(Allocation):
    """The highest scores of the whole network, wherever they are (global magnitude pruning: Gupta et al., 2022).

    Args:
        floor: weights that every layer keeps at least, as a fraction of *all* weights of the network (the paper's MT, there in
            percent; 0 by default). Layers smaller than that stay dense, and the others are thinned by one common factor so that
            the total is exact. At extreme sparsity plain global ranking can empty a layer; a floor prevents that.
    """

    floor: float = 0.0
    needs_scores = True

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        ranked = _ranked_counts(_required(scores, "global"), total)
        sizes = [math.prod(shape) for shape in shapes]
        least = [min(math.floor(self.floor * sum(sizes)), size) for size in sizes]
        if all(count >= floor for count, floor in zip(ranked, least, strict=True)):
            return ranked
        if sum(least) > total:
            raise ValueError(
                f"a floor of {self.floor:g} reserves {sum(least)} connections, {total} were asked for in all: lower the floor"
            )

        def kept(factor: float) -> list[float]:
            return [max(floor, factor * count) for floor, count in zip(least, ranked, strict=True)]

        return exact_counts(kept(_bisect(lambda factor: sum(kept(factor)), total)), sizes, total)


@dataclass(frozen=True)
class Deviation(Allocation):
    """One multiple of each layer's own standard deviation as threshold for all (class-distribution pruning: See et al., 2016).

    Scores are magnitudes, so a deviation is the root of their mean square. A ranking of the whole network in which no layer is
    thinned more because its weights are smaller.
    """

    needs_scores = True

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        return _ranked_counts([_standardised(s) for s in _required(scores, "deviation")], total)


def _standardised(scores: Tensor) -> Tensor:
    """Scores over the root mean square of those that are finite; what is gone stays at minus infinity."""
    alive = scores[scores.isfinite()].double()
    deviation = float(alive.square().mean().sqrt()) if alive.numel() else 0.0
    return scores.double() / deviation if deviation else scores.double()


@dataclass(frozen=True)
class LAMP(Allocation):
    """Global ranking of ``w**2 / (sum of all w'**2 >= w**2 in the layer)`` (Lee et al., 2021): no setting to tune.

    The largest weight of every layer scores 1, so no layer is emptied while the total is at least the number of layers.
    """

    needs_scores = True

    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        return _ranked_counts([lamp_scores(s) for s in _required(scores, "lamp")], total)


def lamp_scores(scores: Tensor) -> Tensor:
    """LAMP scores ``[n]`` in float64, in descending order of ``scores`` (their order is all that allocation needs).

    Sums run from the large end, so that millions of tiny squares do not drown. Scores below zero have no mass, and
    minus infinity, the score of a connection that is gone, stays what it is.
    """
    ordered = scores.flatten().double().sort(descending=True).values
    squares = ordered.clamp(min=0).square()
    mass = squares.cumsum(0)
    return torch.where(mass > 0, squares / mass, 0.0).masked_fill(ordered == -math.inf, -math.inf)


def _required(scores: Sequence[Tensor] | None, name: str) -> Sequence[Tensor]:
    if scores is None:
        raise ValueError(
            f"allocation {name!r} ranks connections by score, and there are none here: give it to a method that has scores "
            "(such as Magnitude or GMP), or use 'erk' or 'uniform'"
        )
    return scores


def _ranked_counts(scores: Sequence[Tensor], total: int) -> list[int]:
    flat = torch.cat([s.flatten().double() for s in scores])
    if not 0 <= total <= flat.numel():
        raise ValueError(f"cannot keep {total} of {flat.numel()} connections")
    chosen = top_k(flat, total)
    return [int(part.sum()) for part in chosen.split([s.numel() for s in scores])]


def _bisect(total_at: Callable[[float], float], target: float) -> float:
    """The x in [0, 1] where an increasing function reaches ``target``."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if total_at(middle) < target else (low, middle)
    return high


_NAMED: dict[str, type[Allocation]] = {
    "uniform": Uniform,
    "uniform_plus": UniformPlus,
    "er": ER,
    "erk": ERK,
    "balanced": Balanced,
    "pyramid": Pyramid,
    "global": Global,
    "lamp": LAMP,
    "deviation": Deviation,
}
"""Those that need no options."""


def allocation(name: str | Allocation) -> Allocation:
    """An allocation by its name, with its defaults: uniform, uniform_plus, er, erk, balanced, pyramid, global, lamp,
    deviation."""
    if isinstance(name, Allocation):
        return name
    if name not in _NAMED:
        raise ValueError(f"unknown allocation {name!r}: choose one of {', '.join(_NAMED)}")
    return _NAMED[name]()
