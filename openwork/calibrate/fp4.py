"""LLM-FP4: weights and inputs as floats of four bits, their formats and biases searched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.layouts.rounded import RoundedInputLinear, rounded_inputs
from openwork.method import method
from openwork.quantization import FloatGrid, Quantized, formats, nearest
from openwork.quantization.grids import Loss
from openwork.quantization.grouped import fit

ROUNDS = 3
"""How often weights and inputs are searched in turn, at most; the authors' number."""

TOKENS = 256
"""Calibration tokens that the search over the grids of inputs looks at."""


@method(
    paper="Liu et al., LLM-FP4: 4-Bit Floating-Point Quantized Transformers, EMNLP 2023, arXiv 2310.16836",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class FP4(Calibrated):
    """Round weights to floats of a few bits, with a bias for each output and the format that serves the layer best.

    The bias (:class:`~openwork.quantization.FloatGrid`: a real number, so a scale) of each row, and the split of the bits between
    exponent and mantissa, are those that make the squared error of the layer's outputs least.

    With ``inputs=True`` the layer rounds what it reads as well. Channels differ by orders of magnitude, so each has a bias
    ``b_j`` from its largest value; it is split into one real bias ``b`` for all and a whole number ``r_j`` of 0 to
    ``2^E - 1``, and ``2^r_j`` is folded into the columns of the weight, exactly, before that is rounded. Weights and inputs are
    searched in turn, three times. The layer becomes a :class:`~openwork.layouts.rounded.RoundedInputLinear`; it must be the
    last stage, because later ones would see shifted columns.

    Zero is a level, so pruned weights stay exact.

    Args:
        bits: of a weight and of an input, 3 to 8.
        format: "search", or such as "e2m1".
        inputs: round inputs too.
        bias: how biases are searched; "additive" around the one that just holds the largest value, or "multiplicative" as the
            authors, which fails where that is near zero.
    """

    reads_zeros: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "samples"})

    bits: int = 4
    format: str = "search"
    inputs: bool = False
    bias: Literal["additive", "multiplicative", "max"] = "additive"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.grids()

    def grids(self) -> list[FloatGrid]:
        """The formats to choose from; eight bits keep at least two for the mantissa, as the authors do."""
        shapes = formats(self.bits, least_mantissa=2 if self.bits >= 8 else 0)
        grids = [FloatGrid(e, m, self.bias) for e, m in shapes]
        if self.format == "search":
            return grids
        chosen = [grid for grid in grids if grid.name == self.format.upper()]
        if not chosen:
            names = ", ".join(grid.name.lower() for grid in grids)
            raise ValueError(
                f"a float of {self.bits} bits is one of {names}, or 'search'; got {self.format!r}"
            )
        return chosen

    def solve(self, layer: Layer) -> Solution:
        return self._with_inputs(layer) if self.inputs else self._weights_alone(layer)

    def _weights_alone(self, layer: Layer) -> Solution:
        gram = layer.statistics.gram.to(layer.weight.dtype)
        quantized = best_weights(layer.weight, self.grids(), gram, layer.weight @ gram)
        weight = quantized.dense().to(layer.weight.dtype).masked_fill(~layer.mask, 0)
        return Solution(weight, parts={"quantized": quantized})

    def _with_inputs(self, layer: Layer) -> Solution:
        x = layer.statistics.samples[:TOKENS].to(layer.weight.dtype)
        target = x @ layer.weight.T
        trials = [
            trial
            for grid in self.grids()
            for trial in self._alternated(layer.weight, x, target, grid, layer.statistics.maximum)
        ]
        _, grid, scale, shift, quantized = min(trials, key=lambda trial: trial[0])
        weight = quantized.dense().to(layer.weight.dtype).masked_fill(~layer.mask, 0)

        def around(module: nn.Module) -> nn.Module:
            if type(module) is not nn.Linear:
                raise ValueError(
                    f"{layer.name} belongs to a {type(module).__name__}: only an nn.Linear can be made to round its inputs; "
                    "exclude it, or use inputs=False"
                )
            return RoundedInputLinear.around(module, grid, scale, shift)

        return Solution(
            weight,
            parts={"quantized": quantized, "inputs": grid.name},
            effective=weight * torch.exp2(shift.to(weight)),
            module=around,
        )

    def _alternated(
        self, weight: Tensor, x: Tensor, target: Tensor, grid: FloatGrid, largest: Tensor
    ) -> Iterator[tuple[float, FloatGrid, Tensor, Tensor, Quantized]]:
        """Search weights for inputs on ``grid``, then the bias of the inputs for those weights, and again."""
        scale, shift = shifted_scale(grid, largest.to(x.dtype))
        folded = weight / torch.exp2(shift.to(weight))  # exact: powers of two
        before = math.inf
        for _ in range(ROUNDS):
            read = rounded_inputs(x, grid, scale, shift)
            quantized = best_weights(folded, self.grids(), read.T @ read, target.T @ read)
            used = quantized.dense().to(x.dtype)
            errors = []
            for at in grid.candidates(scale):
                change = rounded_inputs(x, grid, at.scale, shift) @ used.T - target
                errors.append((float(change.square().sum()), at.scale))
            error, scale = min(errors, key=lambda pair: pair[0])
            yield error, grid, scale, shift, quantized
            if error >= before:
                break
            before = error


def best_weights(weight: Tensor, grids: Sequence[FloatGrid], gram: Tensor, target: Tensor) -> Quantized:
    """The format of a weight, and the bias of each of its rows, that make the error of the outputs least.

    The squared error of row ``w_q`` is ``w_q G w_q - 2 w_q t + constant``, with ``G = Q^T Q`` of the inputs ``Q`` as they are
    read and ``t = Y^T Q`` of the outputs ``Y`` that are wanted.

    Args:
        weight: ``[out, in]``.
        grids: formats to choose from.
        gram: ``G [in, in]``.
        target: ``t [out, in]``.
    """

    def loss(error: Tensor) -> Tensor:
        rounded = weight + error
        return ((rounded @ gram - 2 * target) * rounded).sum(-1)

    trials = [nearest(weight, grid, "row", fit(weight, grid, "row", loss_of_rows(loss))) for grid in grids]
    return min(trials, key=lambda q: float(loss(q.dense() - weight).sum())).single()


def loss_of_rows(loss: Loss) -> Loss:
    """A loss of errors ``[out, in]`` for groups ``[out, 1, in]``, which whole rows are."""
    return lambda error: loss(error.squeeze(1)).unsqueeze(1)


def shifted_scale(grid: FloatGrid, largest: Tensor) -> tuple[Tensor, Tensor]:
    """One scale for all channels, and shifts: the biases ``b_j`` that just hold each channel, as ``min b + r_j``.

    Args:
        grid: of the inputs.
        largest: magnitude of each channel, ``[in]``.

    Returns:
        The scale, one number, and ``r`` int64 ``[in]`` in 0 to ``2^E - 1``; 0 for channels that are always zero.
    """
    alive = largest > 0
    biases = grid.bias_of(grid.holding(largest))
    least = torch.where(alive, biases, torch.inf).min() if bool(alive.any()) else biases.min()
    whole = least.round()
    shift = (biases.round().clamp(min=whole, max=whole + 2**grid.exponent - 1) - whole).long()
    return grid.scale_of(least), torch.where(alive, shift, 0)
