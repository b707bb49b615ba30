"""A graph in numbers, from which one may try to predict how well a network built on it will do."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from openwork.graphs import levels, shortest_paths


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a quantity over nodes or links; both 0 where there are none."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class GraphProperties:
    """What a graph is like. Made by :func:`graph_properties`.

    Attributes:
        levels: longest path of the directed graph, in nodes, see :func:`openwork.graphs.levels`.
        nodes, links: how many.
        sources, sinks: nodes that no link leads to, and from which none leads on.
        diameter: the longest of the shortest paths.
        density: links, as a part of those that are possible.
        path_length: mean of the shortest paths.
        eccentricity: longest shortest path from a node.
        degree: links of a node.
        closeness: one over the mean distance to the nodes within reach, times the part of the nodes within reach.
        betweenness: part of the shortest paths of others that lead through a node.
        link_betweenness: part of the shortest paths that lead along a link.

    Nodes that cannot reach one another have no path, and none is counted.
    """

    levels: int
    nodes: int
    links: int
    sources: int
    sinks: int
    diameter: int
    density: float
    path_length: float
    eccentricity: Spread
    degree: Spread
    closeness: Spread
    betweenness: Spread
    link_betweenness: Spread

    def numbers(self) -> dict[str, float]:
        """All of them by name, the mean and the deviation of a spread apart."""
        found: dict[str, float] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Spread):
                found |= {f"{field.name} mean": value.mean, f"{field.name} deviation": value.deviation}
            else:
                found[field.name] = float(value)
        return found


def graph_properties(graph: Tensor) -> GraphProperties:
    """The properties of an undirected graph that Stier et al. (2021) predict accuracies from. Nothing is changed.

    Args:
        graph: bool ``[n, n]``, symmetric, False on the diagonal; at least one node. Takes ``n ** 2`` operations a link.

    Paper: Stier, Darji & Granitzer, Experiments on Properties of Hidden Structures of Sparse Neural Networks, 2021, arXiv
    2107.12917.
    """
    level, paths = levels(graph), shortest_paths(graph)
    n, upwards = len(graph), graph.cpu().triu()
    links = int(upwards.sum())
    apart = paths.distance.masked_fill(torch.eye(n, dtype=torch.bool), torch.inf)
    within = apart.isfinite()
    eccentricity = torch.where(within, apart, 0.0).amax(1)
    reached = within.sum(1).double()
    total = torch.where(within, apart, 0.0).sum(1)
    closeness = torch.where(total > 0, reached.square() / total.clamp(min=1) / max(1, n - 1), 0.0)
    return GraphProperties(
        levels=int(level.max()) + 1,
        nodes=n,
        links=links,
        sources=int((level == 0).sum()),
        sinks=int((~upwards.any(1)).sum()),
        diameter=int(eccentricity.max()),
        density=links / max(1.0, n * (n - 1) / 2),
        path_length=float(total.sum() / reached.sum().clamp(min=1)),
        eccentricity=_spread(eccentricity),
        degree=_spread(graph.sum(1).double()),
        closeness=_spread(closeness),
        betweenness=_spread(paths.through_nodes()),
        link_betweenness=_spread(paths.along_links()),
    )


def _spread(values: Tensor) -> Spread:
    if not values.numel():
        return Spread(0.0, 0.0)
    return Spread(float(values.mean()), float(values.std(correction=0)))
