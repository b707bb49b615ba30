"""What a method that works from calibration data answers: for one layer at a time, for a block, or for the model.

A recipe is a list of such methods, its *stages*: each sees what the stages before have left, and the dense layer they all started
from. Choosing what to prune, mending what is left, swapping connections, correcting biases, quantising and repairing with a
low-rank term are all stages of one contract; a stage that must see a whole block at once has the second.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from openwork.allocation import Allocation
from openwork.calibrator.layer import Layer, Solution
from openwork.matrices import Matrix
from openwork.method import Method
from openwork.scores import Loss


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
