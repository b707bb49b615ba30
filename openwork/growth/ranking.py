"""The free places of highest score, tile by tile."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from openwork.grid import Grid
from openwork.growth.contract import Growth, Site, Tile
from openwork.kernels.ranking import NOT_FINITE, best
from openwork.positions import where


class Scored(Growth):
    """Base of the rules that rank the free places by a score."""

    @abstractmethod
    def tiles(self, site: Site) -> Iterable[Tile]:
        """Scores of all places, tile by tile, in order."""

    def places(self, site: Site, taken: Tensor, vacant: Tensor, generator: torch.Generator) -> Tensor:
        return best_free(self.tiles(site), taken, vacant, site.grid)


def scores_at(tiles: Iterable[Tile], places: Tensor) -> Tensor:
    """The scores of some places, given sorted, out of the scores of all."""
    found = []
    for first, scores in tiles:
        bounds = torch.tensor([first, first + scores.numel()], device=places.device)
        low, high = torch.searchsorted(places, bounds).tolist()
        found.append(scores[places[low:high] - first])
    return torch.cat(found)


def best_free(tiles: Iterable[Tile], taken: Tensor, vacant: Tensor, grid: Grid) -> Tensor:
    """The free places of highest score, tile by tile, ties to the lowest place.

    Args:
        tiles: scores in order; never changed.
        taken: sorted int64 places that are not free.
        vacant: int64 ``[rows]``, how many to take in each row.
        grid: the competition grid.

    Raises:
        FloatingPointError: a score is NaN or infinite; nothing has changed then.
    """
    if grid.rows == 1:
        return best(tiles, taken, int(vacant[0]))
    chosen = []
    for first, scores in tiles:
        free = _free_scores(first, scores, taken).view(-1, grid.competitors)
        wanted = vacant[first // grid.competitors :][: free.shape[0]].to(free.device).unsqueeze(-1)
        chosen.append(first + where(_best_of_rows(free, wanted)))
    return torch.cat(chosen) if chosen else taken[:0]


def _best_of_rows(scores: Tensor, wanted: Tensor) -> Tensor:
    """Mark the ``wanted [rows, 1]`` largest of every row, ties to the first."""
    most = int(wanted.max()) if wanted.numel() else 0
    if most == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.topk(most).values.gather(-1, (wanted - 1).clamp(min=0))
    above, tied = scores > threshold, scores == threshold
    places_left = wanted - above.sum(-1, keepdim=True)
    return (above | (tied & (tied.cumsum(-1) <= places_left))) & (wanted > 0)


def _free_scores(first: int, scores: Tensor, taken: Tensor) -> Tensor:
    if scores.numel() and not all(bool(bound.isfinite()) for bound in scores.aminmax()):
        raise FloatingPointError(NOT_FINITE)
    low, high = torch.searchsorted(
        taken, torch.tensor([first, first + scores.numel()], device=taken.device)
    ).tolist()
    free = scores.clone()
    free[taken[low:high] - first] = -torch.inf
    return free
