"""What a topology has become: who is connected, whether hubs formed, how many paths survive.

Every function takes boolean masks ``[out, in, *kernel]``; a unit is connected where any kernel position is. A random topology has
binomial degrees, nearly Poisson; training that moves connections (SET, CHT) pulls them away from that: some inputs collect many,
others none (Mocanu et al., 2018, arXiv 1707.04780). A connection that no input reaches, or that leads to no output, counts in the
sparsity that was asked for and does nothing (Vysogorets & Kempe, Connectivity Matters, 2021, arXiv 2107.02306).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from openwork.graphs import without_dead_ends
from openwork.weights import prunable


@dataclass(frozen=True)
class Wiring:
    """The graph of one layer. Made by :func:`topology`.

    Attributes:
        name: of the parameter.
        density: fraction of weights kept.
        idle_outputs, idle_inputs: units without connections.
        gini_outputs, gini_inputs: inequality of their degrees, see :func:`gini`.
        drift_outputs, drift_inputs: distance of their degrees from those of a random topology, see :func:`drift`.
        gap: expansion, see :func:`spectral_gap`.
    """

    name: str
    density: float
    idle_outputs: int
    idle_inputs: int
    gini_outputs: float
    gini_inputs: float
    drift_outputs: float
    drift_inputs: float
    gap: float


def topology(model: nn.Module | Mapping[str, Tensor]) -> list[Wiring]:
    """The graph of every layer of a model, read from its zeros, or of masks by name. Nothing is changed."""
    masks = model if isinstance(model, Mapping) else nonzero(model)
    found = []
    for name, mask in masks.items():
        outputs, inputs = degrees(mask)
        graph = linked(mask)
        found.append(
            Wiring(
                name=name,
                density=float(mask.double().mean()),
                idle_outputs=int((outputs == 0).sum()),
                idle_inputs=int((inputs == 0).sum()),
                gini_outputs=gini(outputs),
                gini_inputs=gini(inputs),
                drift_outputs=drift(outputs, mask.numel() // len(outputs)),
                drift_inputs=drift(inputs, mask.numel() // len(inputs)),
                gap=spectral_gap(graph),
            )
        )
    return found


def nonzero(model: nn.Module) -> dict[str, Tensor]:
    """Name -> mask ``[out, in, *kernel]`` of the weights that are not zero, of all that a method would make sparse."""
    weights = [w for w in prunable(model) if not w.reason]
    return {
        w.name: (w.module.weight if w.stored else w.oriented(w.parameter)).detach() != 0  # type: ignore[operator]
        for w in weights
    }


def linked(mask: Tensor) -> Tensor:
    """Which outputs are connected to which inputs: ``[out, in]`` of a mask ``[out, in, *kernel]``."""
    return mask.flatten(2).any(-1) if mask.dim() > 2 else mask.bool()


def degrees(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Connections of every output and of every input, kernel positions counted: int64 ``[out]`` and ``[in]``."""
    return mask.flatten(1).sum(1), mask.transpose(0, 1).flatten(1).sum(1)


def gini(degrees: Tensor) -> float:
    """Inequality of degrees: 0 where all are equal, near 1 where one unit has them all."""
    ordered = degrees.double().sort().values
    total, n = float(ordered.sum()), len(ordered)
    if total == 0:
        return 0.0
    ranks = torch.arange(1, n + 1, dtype=torch.float64, device=degrees.device)
    return float((2 * ranks - n - 1) @ ordered) / (n * total)


def drift(degrees: Tensor, places: int) -> float:
    """Total variation distance between the degrees found and those of a random topology of the same density.

    Those are binomial: ``places`` possible connections of a unit, each there with probability ``mean degree / places``. In
    [0, 1]. Even a random topology of ``n`` units is not at 0 but about ``sqrt(number of frequent degrees / n) / 2``.
    """
    expected = binomial(places, float(degrees.double().mean()) / places if places else 0.0)
    counts = torch.bincount(degrees.cpu(), minlength=places + 1).double()
    return float((counts / len(degrees) - expected).abs().sum()) / 2


def binomial(places: int, probability: float) -> Tensor:
    """Probabilities of ``0 .. places`` successes, float64 ``[places + 1]``."""
    k = torch.arange(places + 1, dtype=torch.float64)
    if probability in (0.0, 1.0):
        return (k == places * probability).double()
    n = torch.tensor(float(places), dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return (ways + k * math.log(probability) + (n - k) * math.log1p(-probability)).exp()


def tail_exponent(degrees: Tensor, least: int = 1) -> float:
    """Exponent ``1 + n / sum ln(k / (least - 0.5))`` of a power law fitted to the degrees from ``least`` on.

    Clauset, Shalizi, Newman, Power-law Distributions in Empirical Data, 2009. About 2 to 3 in networks with hubs, larger where
    there are none. Infinite where no unit has so many.
    """
    if least < 1:
        raise ValueError(f"a power law has no degree below 1; got least={least}")
    tail = degrees[degrees >= least].double()
    return math.inf if not len(tail) else 1.0 + len(tail) / float((tail / (least - 0.5)).log().sum())


def effective_density(layers: Sequence[Tensor]) -> list[float]:
    """Fraction of each layer's weights that lie on a path from an input of the first to an output of the last.

    Args:
        layers: masks of linear layers that follow one another, ``[out, in]``.
    """
    return [
        float(alive.double().mean())
        for alive in without_dead_ends([layer.bool() for layer in _chain(layers)])
    ]


def log_paths(layers: Sequence[Tensor]) -> float:
    """Natural logarithm of the number of paths from inputs to outputs; minus infinity where there is none.

    Args:
        layers: as for :func:`effective_density`. A dense perceptron has the product of all its widths.
    """
    chain = _chain(layers)
    ways = torch.ones(chain[0].shape[1], dtype=torch.float64, device=chain[0].device)
    logarithm = 0.0
    for layer in chain:
        ways = layer.double() @ ways
        most = float(ways.max())
        if most == 0:
            return -math.inf
        logarithm += math.log(most)  # what would overflow is kept beside
        ways /= most
    return logarithm + math.log(float(ways.sum()))


def spectral_gap(graph: Tensor) -> float:
    """``1 - sigma_2`` of ``D_out^-1/2 A D_in^-1/2``: 1 for a complete graph, 0 for one that falls into parts.

    Args:
        graph: ``[out, in]``, bool. Units without connections are left out.
    """
    graph = graph[graph.any(1)][:, graph.any(0)].double()
    if min(graph.shape) < 2:
        return 1.0
    scaled = graph / (graph.sum(1, keepdim=True) * graph.sum(0, keepdim=True)).sqrt()
    return 1.0 - float(torch.linalg.svdvals(scaled)[1])


def jaccard(one: Tensor, other: Tensor) -> float:
    """Connections in both masks as a part of those in either: 1 where they are the same, also where both are empty."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0


def _chain(layers: Sequence[Tensor]) -> Sequence[Tensor]:
    for before, after in pairwise(layers):
        if before.dim() != 2 or after.dim() != 2 or before.shape[0] != after.shape[1]:
            raise ValueError(
                f"paths run through linear layers that follow one another; got {list(before.shape)} and then {list(after.shape)}"
            )
    if not layers:
        raise ValueError("paths need at least one layer")
    return layers
