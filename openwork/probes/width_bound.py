"""How wide must a random sparse network be to contain a given one? A safety check before training starts sparse.

Give every neuron of a *target* network a pool of ``R`` stand-ins in the wider *source* network, whose connections are each
there with probability ``p``. A connection of the target, read by a chosen neuron, can come from any stand-in of the neuron it
starts from; all of them lack it with probability ``(1 - p) ** R``. By the union bound, all ``E`` connections are found except
with probability ``delta`` as soon as::

    R  >=  log(E / delta) / log(1 / (1 - p))          p  >=  1 - (delta / E) ** (1 / R)

(Gadhikar et al., Why Random Pruning Is All We Need to Start Sparse, ICML 2023, arXiv 2210.02412). The factor
``1 / log(1 / sparsity)`` is also necessary, at least for networks of three layers. It says what a mask can still express, not
what training will find, and the constants of the paper's construction for deep networks are larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Capacity:
    """What a random mask leaves of one layer. Made by :func:`er_capacity`.

    Attributes:
        edges: connections of the target layer, all of which must be found.
        pool: stand-ins that each neuron read by the layer has, ``source // target`` of its width. Inputs of the network have one.
        needed: stand-ins that would be enough at this density; infinite where the layer keeps nothing.
        failure: bound on the probability that a connection is missing, at most 1.
        density: of the mask.
        least_density: the smallest that would be enough with this pool.
    """

    edges: int
    pool: int
    needed: float
    failure: float
    density: float
    least_density: float

    @property
    def enough(self) -> bool:
        """Whether the pool is as large as needed."""
        return self.pool >= self.needed


def er_capacity(
    source: Sequence[int], target: Sequence[int], density: float | Sequence[float], delta: float = 0.01
) -> list[Capacity]:
    """Whether a random mask on a network of widths ``source`` can contain a network of widths ``target``, layer by layer.

    Args:
        source: widths from input to output of the network that is pruned at random.
        target: the same of the network that it should contain; as many layers, with the same inputs and outputs.
        density: fraction of connections kept, in [0, 1]; one for all layers or one each, as an allocation gives them.
        delta: probability of failure to allow over all layers together; 0.01.

    Returns:
        One entry a layer. The neurons read by the first layer are the inputs themselves, which have no stand-ins: it is safe only
        where it is nearly dense.

    Raises:
        ValueError: the widths do not fit one another, or a number is out of its range.
    """
    if len(source) != len(target) or len(source) < 2:
        raise ValueError(
            f"source and target need equally many widths, inputs and outputs included; got {list(source)} and {list(target)}"
        )
    if min(target) < 1 or any(s < t for s, t in zip(source, target, strict=True)):
        raise ValueError(
            f"no layer of the source may be narrower than that of the target; got {list(source)} and {list(target)}"
        )
    if source[0] != target[0] or source[-1] != target[-1]:
        raise ValueError(
            f"source and target read and give the same things: {source[0]} and {target[0]} inputs, "
            f"{source[-1]} and {target[-1]} outputs"
        )
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta is a probability between 0 and 1; got {delta}")
    layers = list(pairwise(target))
    densities = [density] * len(layers) if isinstance(density, (int, float)) else list(density)
    if len(densities) != len(layers) or not all(0.0 <= p <= 1.0 for p in densities):
        raise ValueError(
            f"density is one fraction in [0, 1], or one for each of {len(layers)} layers; got {density}"
        )
    total = sum(inputs * outputs for inputs, outputs in layers)
    found = []
    for (inputs, outputs), wide, p in zip(layers, source[:-1], densities, strict=True):
        edges, pool = inputs * outputs, wide // inputs
        missing = math.log(total / delta)
        found.append(
            Capacity(
                edges=edges,
                pool=pool,
                needed=math.inf if p == 0 else 1.0 if p == 1 else max(1.0, missing / -math.log1p(-p)),
                failure=min(1.0, edges * (1.0 - p) ** pool),
                density=p,
                least_density=-math.expm1(-missing / pool),
            )
        )
    return found
