"""How alike are two topologies, although their units may stand in another order?

Hidden units have no names: two runs may find the same wiring with its units permuted. :func:`matched` looks for the order in
which two layers have most links in common; :func:`curve_distance` compares what does not depend on the order at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.extras import require
from openwork.probes.persistence import Persistence
from openwork.probes.topology import linked


@dataclass(frozen=True)
class Match:
    """Two layers laid upon one another. Made by :func:`matched`.

    Attributes:
        outputs, inputs: int64: unit ``i`` of the first layer is unit ``outputs[i]`` (``inputs[i]``) of the second.
        common: links that both have then.
        distance: links that only one of them has: how many must be removed or added to make the one the other.
    """

    outputs: Tensor
    inputs: Tensor
    common: int
    distance: int


def matched(
    one: Tensor,
    other: Tensor,
    *,
    fixed_inputs: bool = False,
    fixed_outputs: bool = False,
    starts: int = 10,
    seed: int = 0,
) -> Match:
    """The order of units in which two layers have many links in common.

    Inputs and outputs are ordered in turn, each time the best there is for the present order of the other side (a linear
    assignment), until nothing gets better; from units of like degree next to one another, from the order they have, and from
    random ones. The best order of both sides at once is not found in reasonable time: ``distance`` is a bound from above.

    Args:
        one, other: masks ``[out, in, *kernel]`` of equal shape; units are linked where any kernel position is.
        fixed_inputs, fixed_outputs: where units do have names, as the inputs of the first layer and the classes of the last.
        starts: orders to start from; the best result counts.
        seed: of the random ones.

    Raises:
        ValueError: the shapes differ, or there is no start.
        MissingExtra: SciPy is not installed.
    """
    if one.shape != other.shape or starts < 1:
        raise ValueError(
            f"two masks of one shape can be matched, from at least one start; got {list(one.shape)}, {list(other.shape)} and "
            f"starts={starts}"
        )
    optimize = require("scipy.optimize", extra="sklearn", to="match the units of two topologies")
    a, b = linked(one).cpu().double(), linked(other).cpu().double()
    generator = torch.Generator().manual_seed(seed)

    def assigned(overlap: Tensor) -> Tensor:
        return torch.from_numpy(optimize.linear_sum_assignment(overlap.numpy(), maximize=True)[1])

    def begun(number: int, axis: int, fixed: bool) -> Tensor:
        mine, others = a.sum(axis), b.sum(axis)
        if fixed or number == 1:
            return torch.arange(len(mine))
        if number:
            return torch.randperm(len(mine), generator=generator)
        order = torch.empty(len(mine), dtype=torch.int64)
        order[mine.argsort(stable=True)] = others.argsort(stable=True)
        return order

    found = None
    for number in range(starts):
        outputs, inputs = begun(number, 1, fixed_outputs), begun(number, 0, fixed_inputs)
        common = -1
        while (now := int((a * b[outputs][:, inputs]).sum())) > common:
            common = now
            if not fixed_outputs:
                outputs = assigned(a @ b[:, inputs].T)
            if not fixed_inputs:
                inputs = assigned(a.T @ b[outputs])
        if found is None or common > found.common:
            found = Match(outputs, inputs, common, int(a.sum() + b.sum()) - 2 * common)
    assert found is not None
    return found


def curve_distance(one: Persistence, other: Persistence) -> float:
    """The distance of two layers by their parts alone: the root of the mean square, over all levels in [0, 1], of the difference
    between the parts that are left when connections are drawn down to that level, each relative to its units.

    It is in [0, 1], does not depend on the order of units, and compares layers of different sizes.
    """
    steps = torch.cat([one.levels, other.levels, torch.tensor([0.0, 1.0], dtype=torch.float64)]).unique()
    middles, widths = (steps[1:] + steps[:-1]) / 2, steps[1:] - steps[:-1]
    apart = _parts(one, middles) - _parts(other, middles)
    return float((widths @ apart.square()).sqrt())


def _parts(p: Persistence, levels: Tensor) -> Tensor:
    """Parts, relative to units, once all connections down to a level are drawn."""
    drawn = torch.searchsorted(-p.levels, -levels, right=True)  # levels descend
    counts = torch.cat([torch.tensor([p.units]), p.parts]).double()
    return counts[drawn] / max(1, p.units)
