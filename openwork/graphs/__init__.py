"""Graphs: a layer seen as one, random ones to build networks on, and what their paths say. Pure functions of adjacencies.

- :mod:`openwork.graphs.bipartite`: the links between the outputs and the inputs of a layer ``[out, in]``.
- :mod:`openwork.graphs.random`: small worlds and scale-free graphs ``[n, n]``; what chance makes of given degrees.
- :mod:`openwork.graphs.levels`: an undirected graph as a directed one without cycles, level by level.
- :mod:`openwork.graphs.paths`: shortest paths, and how many of them lead through a node or a link.
"""

from openwork.graphs.bipartite import ch3_l3, without_dead_ends
from openwork.graphs.levels import levels
from openwork.graphs.paths import Paths, shortest_paths
from openwork.graphs.random import barabasi_albert, exchanged, watts_strogatz

__all__ = [
    "Paths",
    "barabasi_albert",
    "ch3_l3",
    "exchanged",
    "levels",
    "shortest_paths",
    "watts_strogatz",
    "without_dead_ends",
]
