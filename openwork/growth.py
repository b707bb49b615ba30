"""Where new connections go.

Growth looks at the places left free by the survivors of a drop and fills as many as were vacated. :class:`Random` needs
nothing but a generator (SET); :class:`Gradient` takes the places whose dense gradient is largest (RigL); :class:`Momentum`
takes a dense momentum instead (sparse momentum). They work in memory of the size of the kept connections plus one tile of
scores. :class:`CH3L3` asks the graph of the connections alone (CHT). All of them return the same places whether the weight is
stored densely or not.

Places are numbered as in :class:`openwork.grid.Grid`: place ``a`` is competitor ``a % competitors`` of row
``a // competitors``. ``taken`` is always a sorted int64 tensor of places that are not free.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from openwork.graphs import ch3_l3
from openwork.grid import Grid
from openwork.kernels.ranking import NOT_FINITE, best
from openwork.positions import Marks, ascending, free_places, merged, where

Tile = tuple[int, Tensor]
"""The scores ``[n]`` of ``n`` consecutive places, and the number of the first of them. A tile holds whole rows, or a part of
the only row."""

TINY = 1e-300
"""Weight of what has none when something is drawn: only taken when nothing else is left."""


class Site(Protocol):
    """What growth may ask of the connections of one parameter."""

    @property
    def grid(self) -> Grid: ...

    @property
    def device(self) -> torch.device: ...

    def gradient_tiles(self) -> Iterator[Tile]:
        """``|dense gradient|`` of the places, tile by tile."""

    def momentum_tiles(self) -> Iterator[Tile]:
        """``|dense momentum|`` of the places, tile by tile."""

    def activations(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs ``(x [samples, in], dy [samples, out])`` whose products sum to this process's dense gradient."""

    def gradient_at(self, places: Tensor) -> Tensor:
        """``|dense gradient|`` at some sorted places of a plain grid."""


class Growth(ABC):
    """A rule for new connections. Values are small, frozen, printable and comparable."""

    needs: frozenset[str] = frozenset()
    """What must be at hand at an update: ``gradient``, ``momentum``, ``activations``."""

    @abstractmethod
    def places(self, site: Site, taken: Tensor, vacant: Tensor, generator: torch.Generator) -> Tensor:
        """Choose free places.

        Args:
            site: the connections of one parameter.
            taken: sorted places of the survivors.
            vacant: int64 ``[rows]``, how many places to fill in each row; never more than are free.
            generator: a CPU generator; the only source of randomness.

        Returns:
            Sorted int64 places, ``vacant.sum()`` of them, none in ``taken``.
        """


@dataclass(frozen=True)
class Random(Growth):
    """Uniform over the free places, without replacement."""

    def places(self, site: Site, taken: Tensor, vacant: Tensor, generator: torch.Generator) -> Tensor:
        return random_places(site.grid, taken, vacant, generator)


class Scored(Growth):
    """Base of the rules that rank the free places by a score."""

    @abstractmethod
    def tiles(self, site: Site) -> Iterable[Tile]:
        """Scores of all places, tile by tile, in order."""

    def places(self, site: Site, taken: Tensor, vacant: Tensor, generator: torch.Generator) -> Tensor:
        return best_free(self.tiles(site), taken, vacant, site.grid)


@dataclass(frozen=True)
class Gradient(Scored):
    """The largest ``|dense gradient|``: where a new weight would lower the loss fastest."""

    needs = frozenset({"gradient"})

    def tiles(self, site: Site) -> Iterable[Tile]:
        return site.gradient_tiles()


@dataclass(frozen=True)
class Momentum(Scored):
    """The largest ``|dense momentum|``: a gradient smoothed over time. Needs the momentum of connections that do not exist,
    so it is only possible in masked storage.
    """

    needs = frozenset({"momentum"})

    def tiles(self, site: Site) -> Iterable[Tile]:
        return site.momentum_tiles()


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


_NAMED: dict[str, type[Growth]] = {
    "random": Random,
    "gradient": Gradient,
    "momentum": Momentum,
    "ch3_l3": CH3L3,
}


def growth(name: str | Growth) -> Growth:
    """A growth rule by its name: random, gradient, momentum, ch3_l3."""
    if isinstance(name, Growth):
        return name
    if name not in _NAMED:
        raise ValueError(f"unknown growth {name!r}: choose one of {', '.join(_NAMED)}")
    return _NAMED[name]()


def drawn(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Scores whose k largest are a draw of k without replacement, with probabilities proportional to ``weights``.

    Each place waits for a time that is exponential with its weight as rate, and the first k are taken: the score is minus the
    logarithm of that time. Places without weight come last, in random order.
    """
    time = torch.empty(weights.shape, dtype=torch.float64).exponential_(generator=generator).clamp_(min=TINY)
    return weights.double().clamp(min=TINY).log() - time.log().to(weights.device)


def scores_at(tiles: Iterable[Tile], places: Tensor) -> Tensor:
    """The scores of some places, given sorted, out of the scores of all."""
    found = []
    for first, scores in tiles:
        bounds = torch.tensor([first, first + scores.numel()], device=places.device)
        low, high = torch.searchsorted(places, bounds).tolist()
        found.append(scores[places[low:high] - first])
    return torch.cat(found)


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


def distinct(n: int, k: int, generator: torch.Generator) -> Tensor:
    """``k`` distinct numbers below ``n``, every set equally likely, sorted, without memory of size ``n`` when ``k`` is small."""
    if 2 * k >= n:
        return ascending(torch.randperm(n, generator=generator)[:k])
    # Never more are drawn than are missing, so nothing is thrown away but repeats, and no number is favoured.
    if Marks.suits(n, k):
        marks, count = Marks(n), 0
        while count < k:
            count += marks.add(torch.randint(n, (k - count,), generator=generator))
        return marks.numbers(k)
    drawn = torch.empty(0, dtype=torch.int64)
    while drawn.numel() < k:
        more = ascending(torch.randint(n, (k - drawn.numel(),), generator=generator))
        drawn = merged(drawn, more).unique_consecutive()
    return drawn


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


def _random_tiles(
    grid: Grid, generator: torch.Generator, device: torch.device, size: int = 1 << 20
) -> Iterator[Tile]:
    rows_at_once = max(1, size // grid.competitors)
    for row in range(0, grid.rows, rows_at_once):
        rows = min(rows_at_once, grid.rows - row)
        scores = torch.rand(rows * grid.competitors, generator=generator, dtype=torch.float64)
        yield row * grid.competitors, scores.to(device)
