"""GQSA: a group of 16 inputs is absent, or codes of four bits with a scale and a zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from openwork.calibrator.layer import Layer, Solution
from openwork.calibrator.quantizing import Quantizing, quantized_solution
from openwork.method import method
from openwork.patterns import Pattern
from openwork.quantization import Grid, Group, IntegerGrid, nearest


@method(
    paper="Zeng et al., GQSA: Group Quantization and Sparsity for Accelerating Large Language Model Inference, IJCNLP-AACL 2025, "
    "arXiv 2412.17560",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class GQSA(Quantizing):
    """Drop the least salient groups of neighbouring inputs, and round the others: the sparse unit is the quantised unit.

    The saliency of a weight is that of the optimal brain surgeon, ``w^2 / inverse(H)[j, j]``; that of a group the mean over its
    weights. The lowest groups of the layer go. With nothing dropped this is :class:`openwork.RTN` in groups of 16.

    Further stages of the paper follow it in a recipe: :class:`openwork.StraightThrough` trains weights and scales of a block at a
    time (its BQPO), :func:`openwork.tune_scales_` trains the scales on the loss of the whole model (its E2E-OQP). Between them
    :class:`openwork.GPTQ` with ``group=16`` may let the kept groups make up for the dropped ones.

    All groups are judged at once, each as if it were the only one to go and any other weight could make up for it. Where many go,
    that is no good guide: with half of a small GPT's groups chosen so, and the kept weights at their exact optimum, perplexity
    rises by 4.6; with groups chosen in SparseGPT's sweep by 1.2, and gradually by 0.3 (docs/evidence/calibration.md). The layout
    is the same for every choice::

        levels = ow.IntegerGrid(4, scales="float16")
        [ow.ALPS(sparsity=0.5, pattern="block 1x16"), ow.GPTQ(grid=levels, group=16, joint=False), ow.StraightThrough()]

    :func:`openwork.layouts.group_int4` computes with the result: 14 bytes for each kept group.

    Args:
        pattern: groups of inputs of a row, as blocks of one row.
        damping: of ``H``, relative to its mean diagonal.
    """

    reads_zeros: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    grid: str | Grid = IntegerGrid(4, scales="float16")
    group: Group = 16
    pattern: str | Pattern = "block 1x16"
    damping: float = 0.01

    def solve(self, layer: Layer) -> Solution:
        mask = layer.choose(brain_surgeon_saliency(layer, self.damping))
        quantized = nearest(layer.weight.masked_fill(~mask, 0), self.levels(layer), self.group)
        solution = quantized_solution(layer, quantized)
        return Solution(solution.weight.masked_fill(~mask, 0), mask, parts=solution.parts)


def brain_surgeon_saliency(layer: Layer, damping: float) -> Tensor:
    """``w^2 / inverse(H)[j, j]``: what removing a weight costs when all others may make up for it, ``[out, in]``."""
    factor = layer.inverse_factor(damping)
    return layer.weight.square() / factor.square().sum(0).to(layer.weight.dtype)
