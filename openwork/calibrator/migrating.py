"""Stages that move scale from what a layer reads into its weights, so that both are easier to quantise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from openwork.calibrator.contract import Block, BlockCalibrated
from openwork.folding import Fold, Watching, folds
from openwork.heads import Values
from openwork.reordering import Channels
from openwork.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class Migrating(BlockCalibrated):
    """An exact reparametrisation: ``x' = x / s``, ``W' = W s`` for each input channel.

    The division is folded into what makes ``x``, wherever that is a norm or a linear layer and nothing else reads ``x``
    (:mod:`openwork.folding`); the model computes the same as before, up to rounding, and no zero is filled. The first stage of a
    recipe: those that follow take the block as it then is.
    """

    exact: ClassVar[bool] = True
    gram: ClassVar[bool] = False
    """Whether :meth:`scales` reads ``X^T X``."""

    @abstractmethod
    def scales(self, fold: Fold, seen: Statistics) -> Tensor:
        """The scales ``s [channels]`` of a tensor, positive.

        Args:
            fold: the tensor and the layers that read it.
            seen: statistics of it.
        """

    def solve_block(self, block: Block) -> None:
        """Raises ValueError where nothing in the block can be scaled."""
        with torch.no_grad():
            found = folds(block.module, lambda: block.inputs[0].outputs(block.module))
            if not found:
                raise ValueError(
                    f"{self.name} finds nothing to fold a scale into in {block.name or 'the model'}: every linear layer reads a "
                    "tensor that no affine norm or linear layer makes, or that something else reads too; leave the stage out"
                )
            seen = observed(block, found, gram=self.gram)
            for fold in found:
                fold.scale_(self.scales(fold, seen[fold.name]))


@dataclass
class _Tokens:
    """Which rows of the tensors in a batch count."""

    mask: Tensor | None = field(default=None)

    def of(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.mask is None or rows.shape[0] != self.mask.numel():
            return rows
        return rows[self.mask.flatten().to(rows.device)]


def observed(block: Block, found: Sequence[Fold | Channels | Values], *, gram: bool) -> dict[str, Statistics]:
    """Statistics of the tensors of ``found``, by name, over all batches, padding left out."""
    first = {id(fold.readers[0].weight): fold for fold in found}
    seen: dict[str, Statistics] = {}
    tokens = _Tokens()

    def reads(weight: nn.Parameter, x: Tensor) -> None:
        if (fold := first.get(id(weight))) is not None:
            if fold.name not in seen:
                dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
                seen[fold.name] = Statistics(fold.channels, gram=gram, dtype=dtype, device=x.device)
            with torch._C.DisableTorchFunction():
                seen[fold.name].add(tokens.of(x))

    for index in block:
        tokens.mask = block.tokens[index]
        with Watching({id(p): name for name, p in block.module.named_parameters()}, reads):
            block.run(index)
    return seen
