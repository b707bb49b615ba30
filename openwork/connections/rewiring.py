"""What an update makes of the connections of one parameter, before it is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from openwork.layouts.csr import CSR
from openwork.positions import where


@dataclass(frozen=True, eq=False)
class Rewiring:
    """The connections there would be, and where each of them is among those there are.

    Attributes:
        connections: sorted int64 positions ``[kept]`` in the flattened ``[out, in, *kernel]`` weight, or the topology of the
            weight as a matrix, whichever is at hand.
        origin: ``[kept]``, int32 or int64: which of the active connections each of them is, in order of position; -1 for one
            that is new. One that was dropped and grown again is the one that it was.
    """

    connections: Tensor | CSR
    origin: Tensor

    @cached_property
    def positions(self) -> Tensor:
        """Sorted int64 ``[kept]``."""
        return self.connections.positions() if isinstance(self.connections, CSR) else self.connections

    @property
    def fresh(self) -> Tensor:
        """Sorted positions of the connections that are new."""
        return self.positions[where(self.origin < 0)]

    def topology(self, shape: tuple[int, int]) -> CSR:
        """The connections as those of a matrix ``[out, rest]``."""
        if isinstance(self.connections, CSR):
            return self.connections
        return CSR.from_positions(self.connections, shape)

    def beginning_anew(self, goes_on: Tensor) -> Rewiring:
        """The same connections, of which only those that ``goes_on`` marks among the active ones are what they were."""
        stays = (self.origin >= 0) & goes_on[self.origin.clamp(min=0)]
        return replace(self, origin=torch.where(stays, self.origin, -1))
