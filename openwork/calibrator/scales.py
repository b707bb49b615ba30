"""Scales of quantised layers, trained from end to end while every code stays as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from openwork.calibrator.report import Calibration
from openwork.calibrator.tuning import descend
from openwork.calibrator.undo import all_or_nothing, at_rest
from openwork.matrices import Matrix, matrices
from openwork.progress import phase
from openwork.quantization import Placement, Quantized
from openwork.quantization.integers import stored
from openwork.weights import prunable, unwrapped

TOLERANCE = 0.1
"""Parts of a scale by which a weight may differ from its code: what the precision of the model costs."""


def tune_scales_(
    model: nn.Module,
    calibration: Calibration,
    *,
    data: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor] | None = None,
    epochs: int = 1,
    learning_rate: float = 1e-3,
) -> Calibration:
    """Train the scales of all quantised weights on the loss of the whole model, in place; codes, zeros and masks stay.

    The last stage of GQSA (end-to-end optimisation of the quantiser's parameters): one number a group is trained, so it takes the
    memory of inference and of those. The scales that were best over all of ``data`` remain, those it began with included.

    Args:
        model: as a recipe with a quantiser left it.
        calibration: what the recipe returned; its parts hold the codes. It does not change.
        data: batches ``(inputs, targets)``.
        loss: ``loss(outputs, targets)``; cross entropy by default.
        epochs: over the data.
        learning_rate: of the logarithm of a scale; Adam. A step of 0.001 changes a scale by a thousandth.

    Returns:
        The calibration with the new scales in its parts.

    Raises:
        ValueError: nothing in the calibration is quantised, or the weights of the model are not what its codes say. The model
            is as it was then, after any error.

    Paper: Zeng et al., GQSA, IJCNLP-AACL 2025, arXiv 2412.17560.
    """
    model, loss = unwrapped(model), loss or nn.functional.cross_entropy
    batches = list(data)
    every = {m.name: m for weight in prunable(model) for m in matrices(weight)}
    found = {
        name: p["quantized"]
        for name, p in calibration.parts.items()
        if isinstance(p.get("quantized"), Quantized)
    }
    if not found or not batches:
        raise ValueError("tuning scales needs batches, and a calibration with a quantiser among its stages")
    scaled = [_Scaled(every[name], quantized, calibration.parts[name]) for name, quantized in found.items()]

    def total() -> float:
        with torch.no_grad():
            return sum(float(loss(_run(model, scaled, x), y)) for x, y in batches)

    with all_or_nothing(model) as undo, at_rest(model), phase("tuning scales", epochs) as progress:
        undo.remember(model)
        logs = [s.log for s in scaled]
        optimizer = torch.optim.Adam(logs, lr=learning_rate)
        best, kept = total(), [s.log.detach().clone() for s in scaled]
        for _ in range(epochs):
            for x, y in batches:
                descend(optimizer, logs, lambda x=x, y=y: loss(_run(model, scaled, x), y))  # type: ignore[misc]
            if (now := total()) < best:
                best, kept = now, [s.log.detach().clone() for s in scaled]
            progress.advance()
        parts = {name: dict(p) for name, p in calibration.parts.items()}
        for s, log in zip(scaled, kept, strict=True):
            s.log.copy_(log)
            parts[s.matrix.name]["quantized"] = s.write()
    return dataclasses.replace(calibration, parts=parts)


class _Scaled:
    """A quantised matrix whose scales are ``scale * exp(log)``; its zeros, and outliers beside its codes, stay."""

    def __init__(self, matrix: Matrix, quantized: Quantized, parts: Mapping[str, Any]) -> None:
        self.matrix, self.quantized = matrix, quantized
        self.log = torch.zeros_like(quantized.at.scale, requires_grad=True)
        held = matrix.view(matrix.weight.parameter.detach()).flatten(1).float()
        self.mask = held != 0
        self.beside = parts["outliers"].dense().float() if "outliers" in parts else 0.0
        error = (self._of(quantized.at.scale) - held).abs()
        if bool((error > TOLERANCE * quantized.placement().scale).any()):
            raise ValueError(
                f"the weights of {matrix.name} are not those of its codes: something changed them since calibration"
            )

    def weight(self) -> Tensor:
        """``[out, in]``, with gradients to the scales."""
        return self._of(self.quantized.at.scale * self.log.exp())

    def _of(self, scale: Tensor) -> Tensor:
        q, at = self.quantized, Placement(scale, self.quantized.at.zero)
        return torch.where(self.mask, q.grid.decode(q.codes, at[:, q.group_of]) + self.beside, 0)

    @torch.no_grad()
    def write(self) -> Quantized:
        """Put the weight of the scales, as they are stored, into the model."""
        scale = stored(
            self.quantized.at.scale * self.log.exp(), getattr(self.quantized.grid, "scales", "float32")
        )
        parameter = self.matrix.weight.parameter.detach()
        self.matrix.view(parameter).copy_(self._of(scale).reshape(self.matrix.shape))
        return dataclasses.replace(self.quantized, at=Placement(scale, self.quantized.at.zero))


def _run(model: nn.Module, scaled: list[_Scaled], inputs: Any) -> Any:
    weights: dict[str, Tensor] = {}
    for s in scaled:
        name = s.matrix.weight.name
        if name not in weights:
            weights[name] = s.matrix.weight.parameter.detach().clone()
        s.matrix.view(weights[name]).copy_(s.weight().reshape(s.matrix.shape))
    if isinstance(inputs, dict):
        return functional_call(model, weights, (), inputs)
    return functional_call(model, weights, inputs if isinstance(inputs, tuple) else (inputs,))
