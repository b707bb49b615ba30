"""How many connections each parameter keeps.

At a fixed total the split among layers decides most of the accuracy of a sparse network. An allocation turns a total into
exact integer counts, one for each parameter, that sum to the total.

- :mod:`.densities`: from shapes alone, :class:`Uniform`, :class:`ER`, :class:`ERK`, :class:`Balanced`;
- :mod:`.depth`: from where a layer stands, :class:`UniformPlus`, :class:`Pyramid`;
- :mod:`.like`: :class:`Like`, the split of another network;
- :mod:`.ranking`: from scores, :class:`Global`, :class:`LAMP` and :class:`Deviation` rank the connections of all parameters
  against one another;
- :mod:`.counts`: real shares as whole numbers.

Shapes are ``[out, in, *kernel]``. Everything here is a pure function; nothing is changed in place.
"""

from openwork.allocation.contract import Allocation
from openwork.allocation.counts import exact_counts
from openwork.allocation.densities import ER, ERK, Balanced, Uniform
from openwork.allocation.depth import Pyramid, UniformPlus
from openwork.allocation.like import Like
from openwork.allocation.named import allocation
from openwork.allocation.ranking import LAMP, Deviation, Global

__all__ = [
    "ER",
    "ERK",
    "LAMP",
    "Allocation",
    "Balanced",
    "Deviation",
    "Global",
    "Like",
    "Pyramid",
    "Uniform",
    "UniformPlus",
    "allocation",
    "exact_counts",
]
