"""What a recipe did, layer by layer and stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from openwork.plan import Plan
from openwork.tables import table


@dataclass(frozen=True)
class Line:
    """One stage at work on one layer.

    Attributes:
        layer: name of the parameter, followed by ``[i]`` for an expert or a group.
        stage: name of the method.
        numel, kept: weights of the layer, and how many are kept after the stage.
        error: squared error of the layer's outputs relative to their own square, after the stage; None where no stage of the
            recipe reads ``X^T X``, which it takes.
        seconds: the stage took.
    """

    layer: str
    stage: str
    numel: int
    kept: int
    error: float | None
    seconds: float

    @property
    def sparsity(self) -> float:
        return 1.0 - self.kept / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class Calibration:
    """What :func:`openwork.sparsify_` did with calibration data. Print it.

    Attributes:
        plan: parameter by parameter, what was kept and why, as the last stage that chose made it.
        masks: parameter name -> boolean mask ``[out, in, *kernel]``, True = kept.
        lines: the table, in the order of the work.
        parts: layer -> what stages said of it besides: codes, scales, factors.
        seconds: all of it took.
    """

    plan: Plan
    masks: dict[str, Tensor]
    lines: tuple[Line, ...]
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def errors(self, stage: str) -> dict[str, float]:
        """Layer -> relative error after a stage, given by its name; where it is in the recipe twice, after the second."""
        return {
            line.layer: line.error for line in self.lines if line.stage == stage and line.error is not None
        }

    def __str__(self) -> str:
        header = ("layer", "stage", "sparsity", "kept", "of", "error", "seconds")
        cells = [
            (
                line.layer,
                line.stage,
                f"{line.sparsity:.4f}",
                str(line.kept),
                str(line.numel),
                "-" if line.error is None else f"{line.error:.4g}",
                f"{line.seconds:.2f}",
            )
            for line in self.lines
        ]
        total = (
            f"asked {self.plan.asked}; sparsity {self.plan.sparsity:.6f}, {self.plan.kept} of {self.plan.numel} kept; "
            f"{self.seconds:.1f} s"
        )
        return "\n".join([*table(header, cells, numbers=header[2:]), total])
