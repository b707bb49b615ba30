"""Which masks are legal.

A pattern answers one question: *which connections compete with one another for a place, and which of them come and go
together?* It does so with a single transformation. Any weight ``[out, in, *kernel]`` is seen as a grid

    ``[rows, competitors, atom]``

where the ``competitors`` of one row compete for that row's places, and the ``atom`` weights of one competitor are kept or
dropped together. One exact top-k over the middle axis then serves every pattern and every method:

===================  =================  ===========================  ==================
pattern              rows               competitors                  atom
===================  =================  ===========================  ==================
``Unstructured()``   1                  all weights                  one weight
``NM(2, 4)``         each 4 inputs      those 4 inputs                one weight
``AnyNM(8)``         each 8 inputs      those 8 inputs                one weight
``FanIn()``          output units       the inputs of one unit       one weight
``Block(4, 1)``      1                  all blocks                   4 outputs x 1 input
``Groups(0)``        1                  output units (channels)      all weights of one
``Gates(4)``         1                  the places of one gate       that place in all gates
===================  =================  ===========================  ==================

Everything here is a pure function of shapes and tensors; nothing is changed in place.
"""

from openwork.patterns.block import Block
from openwork.patterns.contract import Pattern
from openwork.patterns.fan_in import FanIn
from openwork.patterns.gates import Gates
from openwork.patterns.groups import Groups
from openwork.patterns.nm import NM, AnyNM
from openwork.patterns.spelling import pattern
from openwork.patterns.unstructured import Unstructured

__all__ = ["NM", "AnyNM", "Block", "FanIn", "Gates", "Groups", "Pattern", "Unstructured", "pattern"]
