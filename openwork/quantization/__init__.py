"""Few bits a weight: which levels are there, where do they lie, who shares them, and how are they stored?

A grid (:mod:`~openwork.quantization.grids`) is a set of levels, such as the integers 0 to 15 or the values of a four-bit
float. A placement says where the levels of a group of weights lie: ``(level - zero) * scale``. The weights of a row, or runs of
so many inputs of it, share one placement (:mod:`~openwork.quantization.grouped`), and codes are packed into bytes
(:mod:`~openwork.quantization.codes`).

Zero is a level of every grid that is used for pruned weights, so that a zero stays exactly zero. Everything here is a pure
function of tensors.
"""

from openwork.quantization.floats import FloatGrid, formats
from openwork.quantization.grids import Grid, Placement
from openwork.quantization.grouped import Group, Quantized, fit, nearest
from openwork.quantization.integers import IntegerGrid
from openwork.quantization.named import grid

__all__ = [
    "FloatGrid",
    "Grid",
    "Group",
    "IntegerGrid",
    "Placement",
    "Quantized",
    "fit",
    "formats",
    "grid",
    "nearest",
]
