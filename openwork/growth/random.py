"""Places at random: uniformly, or by weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.grid import Grid
from openwork.growth.contract import Growth, Site, Tile
from openwork.growth.ranking import best_free
from openwork.positions import distinct, free_places

_TINY = 1e-300
"""Weight of what has none when something is drawn: only taken when nothing else is left."""


@dataclass(frozen=True)
class Random(Growth):
    """Uniform over the free places, without replacement."""

    def places(self, site: Site, taken: Tensor, vacant: Tensor, generator: torch.Generator) -> Tensor:
        return random_places(site.grid, taken, vacant, generator)


def drawn(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Scores whose k largest are a draw of k without replacement, with probabilities proportional to ``weights``.

    Each place waits for a time that is exponential with its weight as rate, and the first k are taken: the score is minus the
    logarithm of that time. Places without weight come last, in random order.
    """
    time = torch.empty(weights.shape, dtype=torch.float64).exponential_(generator=generator).clamp_(min=_TINY)
    return weights.double().clamp(min=_TINY).log() - time.log().to(weights.device)


def random_places(grid: Grid, taken: Tensor, vacant: Tensor, generator: torch.Generator) -> Tensor:
    """``vacant[r]`` free places in every row ``r`` of a grid, uniformly; arguments and result as in :meth:`Growth.places`."""
    if grid.rows == 1:
        return free_at_random(taken, grid.competitors, int(vacant[0]), generator)
    return best_free(_random_tiles(grid, generator, taken.device), taken, vacant, grid)


def free_at_random(taken: Tensor, places: int, k: int, generator: torch.Generator) -> Tensor:
    """``k`` distinct free places out of ``places``, uniformly, in memory of the size of ``taken`` and ``k``.

    Args:
        taken: sorted int64 places that are not free.
        places: number of places in all.
        k: how many to draw, at most ``places - len(taken)``.

    Returns:
        Sorted int64 tensor ``[k]`` on the device of ``taken``.
    """
    free = places - taken.numel()
    if not 0 <= k <= free:
        raise ValueError(f"cannot grow {k} connections where {free} of {places} places are free")
    return free_places(taken, distinct(free, k, generator).to(taken.device))


def _random_tiles(
    grid: Grid, generator: torch.Generator, device: torch.device, size: int = 1 << 20
) -> Iterator[Tile]:
    rows_at_once = max(1, size // grid.competitors)
    for row in range(0, grid.rows, rows_at_once):
        rows = min(rows_at_once, grid.rows - row)
        scores = torch.rand(rows * grid.competitors, generator=generator, dtype=torch.float64)
        yield row * grid.competitors, scores.to(device)
