"""Shortest paths of a graph, how many there are, and how many lead through a node or along a link."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Paths:
    """All shortest paths of an undirected graph. Made by :func:`shortest_paths`.

    Attributes:
        graph: bool ``[n, n]``.
        distance: float64 ``[n, n]``: links on the way; infinite where there is none.
        count: float64 ``[n, n]``: how many shortest paths there are; 1 from a node to itself.
    """

    graph: Tensor
    distance: Tensor
    count: Tensor

    def through_nodes(self) -> Tensor:
        """Betweenness ``[n]``: the part of the shortest paths between other nodes that lead through a node, summed over pairs and
        divided by their number ``(n - 1) (n - 2) / 2``."""
        n = len(self.graph)
        found = torch.zeros(n, dtype=torch.float64)
        for v in range(n):
            share = self._shares(v, v, 0.0)
            share[v], share[:, v] = 0.0, 0.0
            found[v] = share.sum() / 2
        return found / max(1.0, (n - 1) * (n - 2) / 2)

    def along_links(self) -> Tensor:
        """Betweenness of every link ``u < v``, ``[links]`` in row-major order: the same of paths that lead along it, over all
        ``n (n - 1) / 2`` pairs."""
        n = len(self.graph)
        links = self.graph.triu().nonzero().tolist()
        found = torch.tensor([float(self._shares(u, v, 1.0).sum()) for u, v in links], dtype=torch.float64)
        return found / max(1.0, n * (n - 1) / 2)

    def _shares(self, enter: int, leave: int, length: float) -> Tensor:
        """For every pair ``(s, t)``, the part of its shortest paths that go ``s .. enter, leave .. t``, which takes ``length``
        steps in between."""
        via = self.distance[:, enter, None] + length + self.distance[leave]
        shortest = (via == self.distance) & via.isfinite()
        ways = self.count[:, enter, None] * self.count[leave]
        return torch.where(shortest, ways / self.count.clamp(min=1), 0.0)


def shortest_paths(graph: Tensor) -> Paths:
    """Distances and numbers of shortest paths, from all nodes at once: every round goes one link further.

    Args:
        graph: bool ``[n, n]``, symmetric. Takes ``n ** 3`` operations a round, and memory of ``n ** 2``.
    """
    links = graph.to("cpu", torch.float64)
    n = len(links)
    distance = torch.full((n, n), torch.inf, dtype=torch.float64).fill_diagonal_(0)
    count = torch.eye(n, dtype=torch.float64)
    frontier, away = count, 0
    while bool(frontier.any()):
        away += 1
        frontier = torch.where(distance.isinf(), frontier @ links, 0.0)
        distance[frontier > 0] = away
        count = count + frontier
    return Paths(graph.cpu(), distance, count)
