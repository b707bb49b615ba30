"""Is a layer a small world? More clustered than chance would have it, and no wider.

Neighbours of a unit are on the other side of its layer and never linked to one another, so clustering is counted in squares: the
part of the paths of three links whose ends are linked as well (Robins & Alexander, 2004). Chance is the same layer with its
links exchanged at random, two by two, so that every unit keeps its degree. With ``C`` the clustering and ``L`` the mean length of
shortest paths (Humphries & Gurney, 2008)::

    sigma = (C / C of chance) / (L / L of chance)            above 1: a small world
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.graphs import exchanged, shortest_paths
from openwork.probes.topology import linked


@dataclass(frozen=True)
class SmallWorld:
    """How clustered and how wide a layer is, beside chance. Made by :func:`small_world`.

    Attributes:
        clustering: part of the paths of three links that are closed to a square.
        path_length: mean length of the shortest paths between units that reach one another.
        chance_clustering, chance_path_length: mean of both over layers of the same degrees.
    """

    clustering: float
    path_length: float
    chance_clustering: float
    chance_path_length: float

    @property
    def sigma(self) -> float:
        """Small-worldness; NaN where chance makes no square."""
        if not self.chance_clustering or not self.path_length:
            return math.nan
        return (self.clustering / self.chance_clustering) / (self.path_length / self.chance_path_length)


def small_world(mask: Tensor, *, draws: int = 10, seed: int = 0) -> SmallWorld:
    """Compare the graph of a layer with chance. Nothing is changed.

    Args:
        mask: ``[out, in, *kernel]``, bool; units are linked where any kernel position is. Takes ``(out + in) ** 3`` operations
            for every step of the longest path: some hundred units, not many thousand.
        draws: layers of the same degrees to compare with.
        seed: of them.
    """
    if draws < 1:
        raise ValueError(f"chance is drawn at least once; got draws={draws}")
    graph = linked(mask).cpu()
    generator = torch.Generator().manual_seed(seed)
    others = [exchanged(graph, generator) for _ in range(draws)]
    return SmallWorld(
        squares(graph),
        _path_length(graph),
        sum(map(squares, others)) / draws,
        sum(map(_path_length, others)) / draws,
    )


def squares(graph: Tensor) -> float:
    """Part of the paths of three links of ``graph [out, in]`` whose ends are linked: 1 where all are, 0 where there are none."""
    links = graph.double()
    shared = (links @ links.T).fill_diagonal_(0)
    cycles = float((shared * (shared - 1) / 2).sum()) / 2
    paths = float((links.sum(1) - 1).clamp(min=0) @ links @ (links.sum(0) - 1).clamp(min=0))
    return 4 * cycles / paths if paths else 0.0


def _path_length(graph: Tensor) -> float:
    outputs, inputs = graph.shape
    both = torch.zeros(outputs + inputs, outputs + inputs, dtype=torch.bool)
    both[:outputs, outputs:], both[outputs:, :outputs] = graph, graph.T
    distance = shortest_paths(both).distance
    reached = distance.isfinite() & (distance > 0)
    return float(distance[reached].mean()) if bool(reached.any()) else 0.0
