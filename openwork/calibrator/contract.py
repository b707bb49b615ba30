"""What a method that works from calibration data is given, one layer at a time, and what it gives back.

A recipe is a list of such methods, its *stages*: each sees what the stages before have left, and the dense layer they all started
from. Choosing what to prune, mending what is left, swapping connections, correcting biases, quantising and repairing with a
low-rank term are all stages of one contract; a stage that must see a whole block at once has the second.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from openwork.allocation import Allocation
from openwork.matrices import Matrix
from openwork.method import Method
from openwork.patterns import Pattern
from openwork.reconstruction.admm import Normalized
from openwork.reconstruction.hessian import inverse_factor, layer_error
from openwork.scores import Loss
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


@dataclass(frozen=True, kw_only=True)
class Calibrated(Method):
    """A stage that works on one layer after another.

    A stage either chooses what is kept (``reads_zeros`` False: sparsity, allocation and pattern are its own) or works with the
    zeros it finds (``reads_zeros`` True: it gets the pattern and the counts of the stage that chose).
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """Statistics beyond vectors: ``"gram"`` for ``X^T X``, ``"samples"`` for some tokens themselves. Vectors of every input
    (mean, variance, squares, magnitudes, maximum) are always there."""
    shrinks: ClassVar[bool] = True

    sparsity: float = 0.5
    allocation: str | Allocation = "uniform"

    @abstractmethod
    def solve(self, layer: Layer) -> Solution:
        """Work on one layer. Nothing of ``layer`` may be changed in place.

        Called once a layer, in the order in which the model reads them, with statistics of the inputs that the layer will see:
        those that the compressed blocks before it produce.
        """


@dataclass(frozen=True)
class Block:
    """One block of a model in the course of a recipe, for stages that look at all of it.

    Attributes:
        name: of the block.
        module: itself, compressed as far as the stages before went; the stage changes its parameters in place.
        masks: parameter name, as in ``module.named_parameters()`` -> boolean mask of the parameter's own shape, True = kept.
            Whatever happens, the others must be zero at the end.
        inputs: the recorded calls, one a batch: pass one to :meth:`run`.
        targets: what the dense block returns for each of them.
        tokens: a batch -> boolean marking the tokens that are no padding, ``[n, length]``, or None where all count.
        layers: the matrices of the block that the recipe works on, by the names that ``parts`` has.
        parts: layer -> what earlier stages said of it (:attr:`Solution.parts`). A stage that changes such a weight puts what is
            then true in their place.
    """

    name: str
    module: nn.Module
    masks: Mapping[str, Tensor]
    inputs: Sequence[Any]
    targets: Sequence[Tensor]
    tokens: Sequence[Tensor | None]
    layers: Mapping[str, Matrix] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, index: int) -> Tensor:
        """What the block returns for batch ``index`` as it is now: the tensor that the next block reads. Gradients flow
        where they are enabled.
        """
        output: Tensor = self.inputs[index].run(self.module)
        return output

    def weight(self, layer: str) -> Tensor:
        """The weight of one of :attr:`layers` as it is now, float32 ``[out, in * prod(kernel)]``, a copy."""
        m = self.layers[layer]
        return m.matrix(m.weight.parameter.detach())

    def mask(self, layer: str) -> Tensor:
        """The mask of one of :attr:`layers`, of the shape of :meth:`weight`."""
        m = self.layers[layer]
        name = next(name for name, p in self.module.named_parameters() if p is m.weight.parameter)
        return m.view(self.masks[name]).flatten(1)

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.inputs)))


@dataclass(frozen=True, kw_only=True)
class BlockCalibrated(Method):
    """A stage that works on one block after another."""

    reads_zeros: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    """Whether the block computes the same afterwards, as when scale moves from one layer to another. Such stages come first, and
    the next ones take the block as it then is for the dense one."""

    @abstractmethod
    def solve_block(self, block: Block) -> Mapping[str, Any] | None:
        """Change the parameters of ``block.module`` in place. The engine sees to it that no zero was filled.

        Returns:
            What there is to say of it; ends up in :attr:`Calibration.parts` under the block's name.
        """


@dataclass(frozen=True, kw_only=True)
class ModelCalibrated(Method):
    """A stage that works on the whole model, after those that work on its layers and blocks."""

    reads_zeros: ClassVar[bool] = True

    @abstractmethod
    def solve_model(
        self, model: nn.Module, masks: Mapping[str, Tensor], data: Sequence[Any], loss: Loss | None
    ) -> Mapping[str, Any] | None:
        """Change parameters of ``model`` in place. Whoever calls sees to it that no zero was filled.

        Args:
            model: compressed as far as the stages before went.
            masks: parameter name -> boolean mask ``[out, in, *kernel]``, True = kept.
            data: batches, as they were given.
            loss: of outputs and targets, or None where none was given.

        Returns:
            What there is to say of it; ends up in :attr:`Calibration.parts` under the stage's name.
        """


Stage = Calibrated | BlockCalibrated


def zeros_stay(weight: Tensor, mask: Tensor) -> bool:
    """Whether ``weight`` is exactly zero wherever ``mask`` is False."""
    return not bool(torch.count_nonzero(weight.masked_fill(mask, 0)))
