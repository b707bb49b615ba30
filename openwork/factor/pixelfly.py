"""Pixelated butterfly: a fixed pattern of blocks, and a low-rank term for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from openwork.layouts.pixelfly import PixelflyLinear, butterfly
from openwork.method import method
from openwork.restructuring import Restructuring, starting


@method(
    paper="Dao et al., Pixelated Butterfly: Simple and Efficient Sparse Training for Neural Network Models, ICLR 2022, "
    "arXiv 2112.00029",
    kind="factor",
)
@dataclass(frozen=True, kw_only=True)
class Pixelfly(Restructuring):
    """Replace weights by a flat block butterfly plus a low-rank term: sparse training without a search for a mask.

    On a grid of ``g x g`` blocks, stretched over the weight, block row ``i`` has the block columns ``i`` and ``i XOR 2^j`` for
    ``j < factors``, so ``(factors + 1) / g`` of the weight is there::

        W = sigmoid(t) S + (1 - sigmoid(t)) U V            t learned, 0 at first

    Rule of thumb of the paper: a quarter to a third of the numbers for ``U V``.

    Args:
        block: units on the side of a block; 32, as in the paper.
        grid: blocks on the side of the pattern, a power of 2; 16. Weights with fewer blocks stay as they are.
        factors: of the butterfly product that the pattern is the sum of; 2, at most ``log2(grid)``.
        rank: of the low-rank term; 32, as in the paper.
        start: ``nearest``: the weight's own blocks, and the best low-rank term for what they leave; or ``fresh``.
    """

    block: int = 32
    grid: int = 16
    factors: int = 2
    rank: int = 32
    start: Literal["nearest", "fresh"] = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        starting(self.start)
        butterfly(self.grid, self.factors)
        if self.block < 1 or self.rank < 0:
            raise ValueError(f"block is at least 1 and rank at least 0; got {self.block} and {self.rank}")

    def forms(self, layers: Mapping[str, nn.Linear]) -> Mapping[str, nn.Module | str]:
        return {name: self._form(name, layer) for name, layer in layers.items()}

    def _form(self, name: str, layer: nn.Linear) -> nn.Module | str:
        shape = layer.out_features, layer.in_features
        if -(-min(shape) // self.block) < self.grid:
            return f"stays: fewer than {self.grid} blocks of {self.block} units on one side"
        if min(shape) < self.rank:
            return f"stays: its rank is at most {min(shape)}"
        made = self.block, self.grid, self.factors, self.rank
        if self.start == "nearest":
            return PixelflyLinear.near(layer.weight, *made, layer.bias)
        return PixelflyLinear.drawn(shape, *made, self.generator(name), layer.bias).to(layer.weight.dtype)
