"""MEST: SET that also asks the gradient before it drops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from openwork.connections import Connections
from openwork.grid import top_k
from openwork.method import method
from openwork.schedules import Cosine, Scalar
from openwork.train.set import SET


@method(
    paper="Yuan et al., MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge, "
    "NeurIPS 2021, arXiv 2110.14032",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class MEST(SET):
    """Drop the connections of smallest ``|w| + pull * |dL/dw|``, grow random ones.

    A weight that is small but still moving is kept. Only gradients of active connections are needed, so an update costs
    no more than SET's. With ``pull=0`` this is SET by magnitude.

    Args:
        pull: weight of the gradient in the score; 0.1 (the sources try 0.01 to 1).
        drop: 0.3 falling to zero along a cosine.
    """

    pull: float = 0.1
    drop: Scalar = Cosine(start=0.3, stop=0.0)
    drop_by: Literal["signed", "magnitude"] = "magnitude"

    def survivors(self, connections: Connections, fraction: float) -> Tensor:
        score = connections.values.abs() + self.pull * connections.gradient.abs()
        active = connections.atoms().numel()
        return top_k(connections.pool(score), active - math.floor(fraction * active + 1e-9))
