"""What a method that trains parts of a frozen model answers: which parts, and what happens around the steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from openwork.method import Method
from openwork.thawing.part import Part
from openwork.weights import Weight

if TYPE_CHECKING:
    from openwork.thawing.thaw import Thawed


@dataclass(frozen=True, kw_only=True)
class Thawing(Method):
    """A method that trains parts of the weights in place, all else frozen.

    ``sparsity``, ``kept``, ``allocation``, ``pattern`` and ``overrides`` play no part; ``include`` and ``exclude`` say which
    weights are looked at.
    """

    reads_zeros: ClassVar[bool] = True

    @property
    def fills_zeros(self) -> bool:
        """Whether weights that are zero may be trained."""
        return False

    @abstractmethod
    def parts(self, model: nn.Module, weights: Sequence[Weight]) -> Mapping[str, Part]:
        """The part of each weight that is trained, by name; weights without one stay frozen. Change nothing.

        Raises:
            ValueError: there is nothing to train.
        """

    def before_step(self, thawed: Thawed, step: int) -> None:
        """Called before the optimizer takes ``step``, counted from 1: the place to add to gradients."""

    def after_step(self, thawed: Thawed, step: int) -> None:
        """Called after it has taken ``step``."""
