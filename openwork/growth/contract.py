"""What growth is: a rule that chooses free places for new connections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from openwork.grid import Grid

Tile = tuple[int, Tensor]
"""The scores ``[n]`` of ``n`` consecutive places, and the number of the first of them. A tile holds whole rows, or a part of
the only row."""


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
