"""One layer in the course of a recipe, and what a stage makes of it: what the solvers of this library work on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from openwork.patterns import Pattern
from openwork.reconstruction.admm import Normalized
from openwork.reconstruction.hessian import inverse_factor, layer_error
from openwork.statistics import Statistics


@dataclass(frozen=True)
class Layer:
    """One weight matrix in the course of a recipe.

    A convolution is seen as a linear layer on unfolded patches; one expert of a fused weight, and one group of a convolution, are
    layers of their own.

    Attributes:
        name: of the parameter, followed by ``[i]`` for an expert or a group.
        shape: ``[out, in, *kernel]``; the matrices below are ``[out, in * prod(kernel)]``.
        dense: the weight before any stage, float32 (float64 where the model is float64).
        weight: as the stages before have left it; zero where ``mask`` is False.
        mask: which weights are kept, boolean.
        dense_bias: before any stage, or None where the layer has no bias.
        bias: as the stages before have left it.
        statistics: of the layer's inputs; one object for all layers that read the same tensor.
        pattern: which masks are legal for ``shape``.
        kept: how many weights this stage is to keep; what ``mask`` has already, for stages that do not choose.
        parts: what earlier stages said of the layer (:attr:`Solution.parts`).
    """

    name: str
    shape: tuple[int, ...]
    dense: Tensor
    weight: Tensor
    mask: Tensor
    dense_bias: Tensor | None
    bias: Tensor | None
    statistics: Statistics
    pattern: Pattern
    kept: int
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def live(self) -> Tensor:
        """Which inputs were ever anything but zero, boolean ``[in * prod(kernel)]``. The weights of the others do nothing."""
        return self.statistics.squares > 0

    def choose(self, scores: Tensor) -> Tensor:
        """The legal mask of the highest scores among the connections that are left, ``kept`` of them as the pattern rounds
        it, ties included. Weights of inputs that are always zero come last.

        Args:
            scores: ``[out, in * prod(kernel)]``, none below 0, higher = keep.

        Raises:
            ValueError: a score is NaN.
        """
        if bool(scores.isnan().any()):
            raise ValueError(f"the scores of {self.name} hold NaN")
        alive = scores.masked_fill(~self.live, 0).masked_fill(~self.mask, -math.inf).reshape(self.shape)
        return self.pattern.choose(alive, self.kept).reshape(scores.shape)

    def inverse_factor(self, damping: float) -> Tensor:
        """The upper factor ``U`` of ``inverse(H)``, see :func:`openwork.reconstruction.hessian.inverse_factor`; computed once
        for all layers that read the same tensor.
        """
        s = self.statistics
        return s.once(("inverse factor", damping), lambda: inverse_factor(s.gram, damping))

    def normalized(self, damping: float) -> Normalized:
        """``H`` in units where every input has norm one, and its inverses; computed once for all layers that read the same
        tensor.
        """
        s = self.statistics
        return s.once(("normalized", damping), lambda: Normalized(s.gram, damping))

    def error(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """Squared error of the layer's outputs when it computes with other values, relative to ``E(dense)``, the square of
        what its weights make of its inputs. Needs ``X^T X``.

        Args:
            weight: ``W [out, in]``; with ``D = W - dense``, the error is ``E(D) = tr(D H D^T)``.
            bias: ``[out]``, where it is not the dense one. A change ``c`` of it adds ``2 n c . D mean(x) + n ||c||^2`` over ``n``
                tokens.
        """
        s, change = self.statistics, weight - self.dense
        error = float(layer_error(change, s.gram))
        if bias is not None:
            shift = bias.double() - (0.0 if self.dense_bias is None else self.dense_bias.double())
            error += s.count * float(2 * shift @ (change.double() @ s.mean) + shift @ shift)
        norm = float(layer_error(self.dense, s.gram))
        return max(error, 0.0) / norm if norm else 0.0


@dataclass(frozen=True)
class Solution:
    """What a stage makes of a layer.

    Attributes:
        weight: ``[out, in * prod(kernel)]``, exactly zero where ``mask`` is False.
        mask: which weights are kept; None leaves the mask as it was.
        bias: ``[out]``; None leaves it as it was. A layer without a bias gets one.
        parts: whatever describes the result further, for later stages and for files: codes and scales of a quantiser, factors.
            They are merged into :attr:`Layer.parts` and end up in :attr:`Calibration.parts`.
        effective: the matrix the layer computes with, where that is not ``weight`` (a low-rank term beside it); for the table.
        module: given the layer's module with the new weights in it, returns what takes its place in the model, such as one with
            a low-rank term beside the weight. None keeps the module.
    """

    weight: Tensor
    mask: Tensor | None = None
    bias: Tensor | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)
    effective: Tensor | None = None
    module: Callable[[nn.Module], nn.Module] | None = None
