"""Where new connections go.

Growth looks at the places left free by the survivors of a drop and fills as many as were vacated. :class:`Random` needs
nothing but a generator (SET); :class:`Gradient` takes the places whose dense gradient is largest (RigL); :class:`Momentum`
takes a dense momentum instead (sparse momentum). They work in memory of the size of the kept connections plus one tile of
scores. :class:`CH3L3` asks the graph of the connections alone (CHT). All of them return the same places whether the weight is
stored densely or not.

Places are numbered as in :class:`openwork.grid.Grid`: place ``a`` is competitor ``a % competitors`` of row
``a // competitors``. ``taken`` is always a sorted int64 tensor of places that are not free.
"""

from openwork.growth.contract import Growth, Site, Tile
from openwork.growth.gradient import Gradient, Momentum
from openwork.growth.link_prediction import CH3L3
from openwork.growth.named import growth
from openwork.growth.random import Random, drawn, free_at_random, random_places
from openwork.growth.ranking import Scored, best_free, scores_at

__all__ = [
    "CH3L3",
    "Gradient",
    "Growth",
    "Momentum",
    "Random",
    "Scored",
    "Site",
    "Tile",
    "best_free",
    "drawn",
    "free_at_random",
    "growth",
    "random_places",
    "scores_at",
]
