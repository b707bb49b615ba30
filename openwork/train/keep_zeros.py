"""Keep the zeros a model already has, through any fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.initialization import Init
from openwork.method import method
from openwork.plan import Row
from openwork.sparsifier import Training


@method(
    paper="common ground: masked training (Han et al., Learning both Weights and Connections, NeurIPS 2015, arXiv 1506.02626)",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class KeepZeros(Training):
    """Fine-tune a pruned model without losing a single zero, whatever the optimizer, momentum or weight decay::

        M = (w != 0) when attached,     w <- M * w after every step

    Kept weights are not changed when attached. Connections that are kept with value exactly zero cannot be told from pruned
    ones by looking at the weights: pass the masks that a verb returned: ``attach(..., masks=pruned.masks)``.

    ``sparsity``, ``allocation`` and ``pattern`` play no part: the model already says what is kept.
    """

    reads_zeros: ClassVar[bool] = True

    init: Init = "keep"

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        return row.weight.oriented(row.weight.parameter.detach()).reshape(-1).nonzero().flatten()
