"""Prune by weights and activations: a weight counts for as much as the input it multiplies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.method import method
from openwork.patterns import Pattern, Unstructured, pattern


@method(
    paper="Sun, Liu, Bair, Kolter, A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024, "
    "arXiv 2306.11695",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class Wanda(Calibrated):
    """Keep the largest ``|w_ij| * ||x_j||`` of every output unit; no weight changes.

    An input feature with a large norm makes its weights matter. One forward pass, and on language models at 50 % nearly the
    quality of methods that solve for new weights.

    - within each output unit: ``pattern="fan-in"`` (default, and clearly better on language models);
    - within each layer: ``pattern="unstructured"`` (as good or better on image classifiers);
    - n:m: ``pattern="2:4"``.

    With all inputs equally large this is magnitude pruning; multiplying the inputs by a factor, or moving one from the inputs
    into the weights, changes nothing.

    Args:
        shares: the variant of the authors' code, in which rows that put much into few connections lose more of them. In each row,
            scores are added up from the smallest; a weight counts for the share of the row's total that it and all smaller ones
            have, and the lowest shares of the layer go: one threshold on what any row may lose. (The authors find it by
            bisection, to within a thousandth of the sparsity; here the count is exact.) It takes ``pattern="unstructured"``.
    """

    pattern: str | Pattern = "fan-in"
    shares: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shares and pattern(self.pattern) != Unstructured():
            raise ValueError(
                f"shares gives rows different numbers of connections, which {pattern(self.pattern)} does not allow: use "
                "pattern='unstructured'"
            )

    def solve(self, layer: Layer) -> Solution:
        scores = wanda_scores(layer)
        mask = layer.choose(cumulative_shares(scores.where(layer.mask, 0)) if self.shares else scores)
        return Solution(layer.weight * mask, mask)


def wanda_scores(layer: Layer) -> Tensor:
    """``|w_ij| * ||x_j||``, with the norm over all tokens."""
    return layer.weight.abs() * layer.statistics.squares.sqrt().to(layer.weight.dtype)


def cumulative_shares(scores: Tensor) -> Tensor:
    """What a score and all smaller ones of its row have of the row's sum, ``[out, in]``, in (0, 1]; 0 in rows of zeros."""
    ordered, order = scores.double().sort(dim=1, stable=True)
    total = ordered.sum(1, keepdim=True)
    shares = ordered.cumsum(1) / total.where(total > 0, 1.0)
    return torch.empty_like(shares).scatter_(1, order, shares)
