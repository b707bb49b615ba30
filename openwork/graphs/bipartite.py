"""A layer as a graph: which of its units are linked, which links its neighbourhoods suggest, which lead nowhere.

A layer ``[out, in]`` is a bipartite graph between its outputs and its inputs. Everything here is a pure function of
adjacency matrices; nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def ch3_l3(adjacency: Tensor) -> Tensor:
    """Cannistraci-Hebb scores of all links by paths of length three, in their node form.

    A link ``(i, t)`` is likely where many short paths ``i - u - j - t`` lie in one community. Each node in the middle of such
    paths adds ``1 / (1 + e)``, with ``e`` its links that leave the community::

        S[i, t] = sum over outputs j != i linked to t that share inputs with i     of 1 / (1 + max(deg(j) - shared(i, j) - 1, 0))
                + sum over inputs  u != t linked to i that share outputs with t    of 1 / (1 + max(deg(u) - shared(u, t) - 1, 0))

    Args:
        adjacency: ``[out, in]``, bool.

    Returns:
        Float64 ``[out, in]``, at least 0. Costs ``out * in * (out + in)`` operations and memory of ``out^2 + in^2``.
    """
    links = adjacency.to(torch.float64)
    return _internal(links) @ links + (_internal(links.T) @ links.T).T


def _internal(links: Tensor) -> Tensor:
    """How much row ``j`` belongs to the community around row ``i``: ``[rows, rows]``, zero where they share nothing."""
    shared = links @ links.T
    outward = (links.sum(-1) - shared - 1).clamp_(min=0)
    return ((shared > 0) / (1 + outward)).fill_diagonal_(0)


def without_dead_ends(layers: Sequence[Tensor]) -> list[Tensor]:
    """Remove links into units from which nothing leads on, then links out of units that nothing reaches.

    Args:
        layers: adjacency ``[out, in]`` of layers that follow one another, from input to output, bool. All inputs of the first
            and all outputs of the last are alive.

    Returns:
        The adjacencies of what is left, along which every link lies on a path from an input to an output.
    """
    left = [layer.clone() for layer in layers]
    for here, after in zip(reversed(left[:-1]), reversed(left[1:]), strict=True):
        here &= after.any(0).unsqueeze(1)
    for before, here in pairwise(left):
        here &= before.any(1).unsqueeze(0)
    return left
