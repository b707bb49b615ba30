"""An undirected graph as a directed one without cycles, level by level."""

from __future__ import annotations

import torch
from torch import Tensor


def levels(graph: Tensor) -> Tensor:
    """The level of every node when links lead from lower to higher numbers: the length of the longest path that ends there.

    Nodes without a lower neighbour are *sources*, on level 0. Every link leads to a higher level, so nothing leads back::

        level(v) = 1 + max of level(u) over the neighbours u < v

    Args:
        graph: bool ``[n, n]``, symmetric, False on the diagonal.

    Returns:
        int64 ``[n]``.

    Raises:
        ValueError: it is no such graph.
    """
    if graph.dim() != 2 or graph.shape[0] != graph.shape[1] or graph.dtype != torch.bool:
        raise ValueError(f"a graph is boolean [n, n]; got {graph.dtype} {list(graph.shape)}")
    if not torch.equal(graph, graph.T) or bool(graph.diagonal().any()):
        raise ValueError("links of a graph go both ways (graph == graph.T), and none from a node to itself")
    found = torch.zeros(len(graph), dtype=torch.int64)
    for node in range(len(graph)):
        before = found[:node][graph[node, :node].cpu()]
        if len(before):
            found[node] = 1 + before.max()
    return found
