"""Random graphs: small worlds, graphs with hubs, and what chance makes of given degrees.

The first two are undirected and without loops: bool ``[n, n]``, symmetric, False on the diagonal; the third is of a layer. The
global random state is never touched.
"""

from __future__ import annotations

import torch
from torch import Tensor


def watts_strogatz(nodes: int, neighbours: int, rewiring: float, seed: int = 0) -> Tensor:
    """A small world: a ring where everybody knows their neighbours, and some know somebody far away.

    Every node of a ring is linked to its ``neighbours / 2`` next ones on either side; then the far end of each link moves, with
    probability ``rewiring``, to a node drawn from those not linked yet (Watts & Strogatz, Nature 1998).

    Args:
        nodes: ``n``, more than ``neighbours``.
        neighbours: even, at least 2.
        rewiring: in [0, 1]; 0 leaves the ring, at 1 little is left of it.
        seed: of the draws.

    Returns:
        Adjacency ``[n, n]`` with exactly ``n * neighbours / 2`` links.
    """
    if neighbours < 2 or neighbours % 2 or neighbours >= nodes:
        raise ValueError(
            f"a ring of {nodes} nodes takes an even number of neighbours, from 2 to {nodes - 1}; got {neighbours}"
        )
    if not 0.0 <= rewiring <= 1.0:
        raise ValueError(f"rewiring is a probability in [0, 1]; got {rewiring}")
    generator = torch.Generator().manual_seed(seed)
    linked = torch.zeros(nodes, nodes, dtype=torch.bool)
    ring = torch.arange(nodes)
    for away in range(1, neighbours // 2 + 1):
        linked[ring, (ring + away) % nodes] = linked[(ring + away) % nodes, ring] = True
    for away in range(1, neighbours // 2 + 1):
        for node in range(nodes):
            if float(torch.rand((), generator=generator)) >= rewiring:
                continue
            strangers = ~linked[node]
            strangers[node] = False
            if not bool(strangers.any()):
                continue  # linked to everybody
            end, near = _one_of(strangers.double(), generator), (node + away) % nodes
            linked[node, near] = linked[near, node] = False
            linked[node, end] = linked[end, node] = True
    return linked


def barabasi_albert(nodes: int, links: int, seed: int = 0) -> Tensor:
    """A graph with hubs: every node that arrives links to those that have many links already.

    The first node and the ``links`` after it are a star; every further node links to ``links`` different ones, drawn with
    probability proportional to their degrees (Barabasi & Albert, Science 1999). Degrees fall off as ``degree ** -3``.

    Args:
        nodes: ``n``, more than ``links``.
        links: of every node that arrives, at least 1.
        seed: of the draws.

    Returns:
        Adjacency ``[n, n]`` with exactly ``links * (n - links)`` links; connected.
    """
    if not 1 <= links < nodes:
        raise ValueError(
            f"in a graph of {nodes} nodes one that arrives has 1 to {nodes - 1} links; got {links}"
        )
    generator = torch.Generator().manual_seed(seed)
    linked = torch.zeros(nodes, nodes, dtype=torch.bool)
    linked[0, 1 : links + 1] = linked[1 : links + 1, 0] = True
    for node in range(links + 1, nodes):
        degrees = linked[:node].sum(1).double()
        ends = torch.multinomial(degrees, links, replacement=False, generator=generator)
        linked[node, ends] = linked[ends, node] = True
    return linked


def exchanged(graph: Tensor, generator: torch.Generator, times: int = 10) -> Tensor:
    """A layer with its links exchanged at random, in which every unit has the degree it had.

    Two links ``i - j`` and ``k - l`` become ``i - l`` and ``k - j``, where those are not there yet.

    Args:
        graph: ``[out, in]``, bool; not changed.
        generator: of the draws.
        times: trials for each link.
    """
    outputs, inputs = (ends.tolist() for ends in graph.nonzero(as_tuple=True))
    there = set(zip(outputs, inputs, strict=True))
    pairs = torch.randint(max(1, len(outputs)), (times * len(outputs), 2), generator=generator).tolist()
    for a, b in pairs:
        one, other = (outputs[a], inputs[b]), (outputs[b], inputs[a])
        if one in there or other in there:
            continue
        there -= {(outputs[a], inputs[a]), (outputs[b], inputs[b])}
        there |= {one, other}
        inputs[a], inputs[b] = inputs[b], inputs[a]
    found = torch.zeros(graph.shape, dtype=torch.bool)
    found[outputs, inputs] = True
    return found


def _one_of(weights: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(weights, 1, generator=generator))
