"""Stages that leave the weights of a layer on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.quantization import Grid, Group, Quantized
from openwork.quantization.grouped import groups_of
from openwork.quantization.named import grid


@dataclass(frozen=True, kw_only=True)
class Quantizing(Calibrated):
    """A stage that moves weights to the levels of a grid; pruned weights stay exactly zero.

    The layer computes with the decoded weights; the codes are in the calibration's parts under ``"quantized"``
    (:class:`~openwork.quantization.Quantized`), from which files and layouts are made.

    Args:
        grid: the levels, by name (:func:`openwork.quantization.grid`) or as a value.
        group: consecutive inputs of a row that share a scale, "row" or "tensor".
    """

    reads_zeros: ClassVar[bool] = True

    grid: str | Grid = "int4"
    group: Group = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        groups_of(1, self.group)
        grid(self.grid)

    def levels(self, layer: Layer) -> Grid:
        """The grid, if it can hold what is in the layer.

        Raises:
            ValueError: the layer has pruned weights, and zero is not a level.
        """
        levels = grid(self.grid)
        if not levels.holds_zero and not bool(layer.mask.all()):
            raise ValueError(
                f"{layer.name} has pruned weights, and {levels} has no level at zero: use zero='integer', or quantise before "
                "anything is pruned"
            )
        return levels


def quantized_solution(layer: Layer, quantized: Quantized, **parts: Any) -> Solution:
    """What a layer becomes when it computes with decoded weights."""
    quantized = quantized.single()
    weight = quantized.dense().to(layer.weight.dtype)
    return Solution(torch.where(layer.mask, weight, 0), parts={"quantized": quantized, **parts})
