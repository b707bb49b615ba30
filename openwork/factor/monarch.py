"""Monarch: a layer as two batches of small products, with a transposition between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from openwork.layouts.monarch import MonarchLinear
from openwork.method import method
from openwork.restructuring import Restructuring, starting


@method(
    paper="Dao et al., Monarch: Expressive Structured Matrices for Efficient and Accurate Training, ICML 2022, arXiv 2204.00595",
    kind="factor",
)
@dataclass(frozen=True, kw_only=True)
class Monarch(Restructuring):
    """Replace weights by products of two block-diagonal matrices and permutations.

    With ``m`` blocks of ``m x m`` a weight ``n x n``, ``n = m^2``, takes ``2 n sqrt(n)`` numbers::

        W[(s, l), (k, p)] = B_l[s, k] A_k[l, p]

    Such matrices hold the discrete Fourier transform and many other fast ones, and the nearest one to a given weight is known
    in closed form (:meth:`openwork.layouts.monarch.MonarchLinear.nearest`). So there are three ways to train: from fresh ones;
    from the nearest ones to trained weights; and from fresh ones that are multiplied out (:func:`openwork.to_dense_`) for the
    last tenth of the steps, which the paper calls reverse sparsification.

    Args:
        blocks: 4, as the authors use in linear layers. Sizes that they do not divide are padded.
        start: ``nearest`` to the weights there are, or ``fresh``.
    """

    blocks: int = 4
    start: Literal["nearest", "fresh"] = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        starting(self.start)
        if self.blocks < 1:
            raise ValueError(f"a Monarch matrix has at least one block; got {self.blocks}")

    def forms(self, layers: Mapping[str, nn.Linear]) -> Mapping[str, nn.Module | str]:
        return {name: self._form(name, layer) for name, layer in layers.items()}

    def _form(self, name: str, layer: nn.Linear) -> nn.Module | str:
        shape = layer.out_features, layer.in_features
        if min(shape) < self.blocks:
            return f"stays: fewer than {self.blocks} units on one side"
        if self.start == "nearest":
            return MonarchLinear.nearest(layer.weight, self.blocks, layer.bias)
        drawn = MonarchLinear.drawn(shape, self.blocks, self.generator(name), layer.bias)
        return drawn.to(layer.weight.dtype)
