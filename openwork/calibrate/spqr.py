"""SpQR: tiny groups with quantised scales, and the few weights that cost most kept as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from openwork.calibrate.gptq import by_importance, ordered_factor
from openwork.calibrator.layer import Layer, Solution
from openwork.calibrator.quantizing import Quantizing, quantized_solution
from openwork.layouts.csr import CSR
from openwork.layouts.outliers import Outliers
from openwork.method import method
from openwork.quantization import Grid, Group
from openwork.quantization.outliers import OutlierQuantizer
from openwork.quantization.two_level import joined
from openwork.reconstruction.sweep import sweep


@method(
    paper="Dettmers et al., SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression, ICLR 2024, "
    "arXiv 2306.03078",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class SpQR(Quantizing):
    """GPTQ in groups of 16 whose scales are quantised themselves, with about one weight in a hundred kept in 16 bits.

    1. Columns are taken by decreasing ``H[j, j]``; a weight costs ``((w - q) / U[j, j])^2`` when it is rounded.
    2. Before a group is fitted, each weight is left out once: where the others then cost less by more than the threshold, it is
       likely to be an outlier, and the mean of the others takes its place in the fit.
    3. Scales and zeros of ``stat_rows`` rows are quantised to ``stat_bits``.
    4. In the sweep, what costs more than the threshold stays as it is; the threshold is ``threshold`` times the mean over
       columns of ``Var(W[:, j]) / U[j, j]^2``.

    Bits a weight: ``b + 2 stat_bits / g + 64 / (g stat_rows) + 32 f`` with a fraction ``f`` of outliers (a value and a column of
    16 bits each), and the row pointers of the outliers.

    Without outliers (``threshold=inf``) and with ``stat_bits=None`` it is :class:`openwork.GPTQ` with ``act_order``. Differences
    from the authors: zero points are rounded to a level, so that pruned weights stay exact and a decoded outlier is its value
    alone; scales are taken in the order of the columns.

    Args:
        threshold: relative; a larger one leaves fewer outliers. The authors' 0.2.
        stat_bits: of a scale and of a zero; None keeps them as the grid stores them.
        stat_rows: rows that share the scale of their scales.
        damping: relative to the mean of ``diag H``; the authors' 1.0, a hundred times GPTQ's.
        joint: as in :class:`openwork.GPTQ`.
        block: columns between two updates of all the rest; changes only the speed.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    grid: str | Grid = "int3"
    group: Group = 16
    threshold: float = 0.2
    stat_bits: int | None = 3
    stat_rows: int = 16
    damping: float = 1.0
    joint: bool = True
    block: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.group, str):
            raise ValueError(
                f"SpQR quantises the scales of groups of inputs: group is a number, not {self.group!r}"
            )
        if not self.threshold >= 0:
            raise ValueError(f"the threshold of outliers is at least 0 (inf for none); got {self.threshold}")

    def solve(self, layer: Layer) -> Solution:
        assert isinstance(self.group, int)
        weight = layer.dense if self.joint else layer.weight
        order = by_importance(layer)
        factor = ordered_factor(layer, order, self.damping)
        pivots = factor.diagonal()
        ordered = weight[:, order].to(factor.dtype)
        # one row alone does not vary: what its weights vary by around zero stands in
        spread = (
            ordered.var(0, correction=0) if len(ordered) > 1 else ordered.square().mean().expand_as(pivots)
        )
        rounding = OutlierQuantizer(
            self.levels(layer),
            (weight.shape[0], weight.shape[1]),
            self.group,
            self.threshold * float((spread / pivots.square()).mean())
            if self.threshold < torch.inf
            else torch.inf,
            pivots,
            self.stat_bits,
            self.stat_rows,
            like=factor,
        )
        sweep(ordered, factor, layer.mask[:, order], quantize=rounding, block=self.block)
        outliers = found_outliers(rounding, order, layer.weight.dtype)
        parts: dict[str, Any] = {"outliers": outliers}
        if rounding.statistics:
            parts["statistics"] = joined(rounding.statistics)
        solution = quantized_solution(layer, rounding.result(order), **parts)
        return Solution(solution.weight + outliers.dense(), parts=solution.parts)


def found_outliers(rounding: OutlierQuantizer, order: Tensor, dtype: torch.dtype) -> Outliers:
    """The outliers of a sweep, put back in the order of the weight."""
    mask, values = torch.empty_like(rounding.outlier), torch.empty_like(rounding.values)
    mask[:, order], values[:, order] = rounding.outlier, rounding.values
    return Outliers(CSR.from_mask(mask), values[mask].to(dtype))


def bits_per_weight(parts: Mapping[str, Any]) -> float:
    """Bits that a layer of SpQR takes for each of its weights, everything counted, from the parts of its solution."""
    quantized, statistics = parts["quantized"], parts.get("statistics")
    size: int = quantized.codes.numel()
    first = quantized.at.scale.numel() * quantized.grid.placement_bits
    bits = size * quantized.grid.bits + 8 * parts["outliers"].nbytes
    return float(bits + (first if statistics is None else 8 * statistics.nbytes)) / max(1, size)
