"""Places whose weight the loss asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from openwork.growth.contract import Site, Tile
from openwork.growth.ranking import Scored


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
