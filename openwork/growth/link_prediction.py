"""Places that the graph of the connections foretells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.graphs import ch3_l3
from openwork.growth.contract import Growth, Site
from openwork.growth.random import drawn
from openwork.growth.ranking import best_free


@dataclass(frozen=True)
class CH3L3(Growth):
    """The links with the largest Cannistraci-Hebb scores, see :func:`openwork.graphs.ch3_l3`.

    Args:
        soft: draw without replacement, with probabilities proportional to the scores; otherwise take the best, ties at random.
    """

    soft: bool = True

    def places(self, site: Site, taken: Tensor, vacant: Tensor, generator: torch.Generator) -> Tensor:
        grid = site.grid
        adjacency = torch.zeros(grid.atoms, dtype=torch.bool, device=taken.device)
        adjacency[taken] = True
        scores = ch3_l3(adjacency.view(grid.split[0], -1)).flatten()
        if self.soft:
            scores = drawn(scores, generator)
        else:
            # Equal scores are common in graphs: their ranks are, and a fraction of one decides among equals.
            ranks = scores.unique(return_inverse=True)[1]
            scores = ranks + torch.rand(ranks.shape, generator=generator, dtype=torch.float64).to(
                ranks.device
            )
        return best_free([(0, scores)], taken, vacant, grid)
