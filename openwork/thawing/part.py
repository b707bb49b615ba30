"""A part of a weight: whole rows or columns of it, or single places."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


class Part(ABC):
    """Some places of a parameter, in the parameter's own shape."""

    @abstractmethod
    def take(self, tensor: Tensor) -> Tensor:
        """The part of a tensor of the parameter's shape, a copy."""

    @abstractmethod
    def put_(self, tensor: Tensor, values: Tensor) -> None:
        """Write the part of a tensor of the parameter's shape."""

    @abstractmethod
    def record(self) -> dict[str, Tensor]:
        """What it is made of, for a checkpoint."""


@dataclass(frozen=True, eq=False)
class Scatter(Part):
    """Single places.

    Attributes:
        positions: sorted int64, into the flattened parameter.
    """

    positions: Tensor

    def take(self, tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(-1)[self.positions]

    def put_(self, tensor: Tensor, values: Tensor) -> None:
        tensor.view(-1)[self.positions] = values.to(tensor.dtype)

    def record(self) -> dict[str, Tensor]:
        return {"positions": self.positions.cpu()}


@dataclass(frozen=True, eq=False)
class Slice(Part):
    """Whole rows, columns, or what else lies along an axis.

    Attributes:
        axis: of the parameter.
        index: sorted int64, which ones.
        inputs: whether they are inputs of the layer (outputs otherwise).
    """

    axis: int
    index: Tensor
    inputs: bool

    def take(self, tensor: Tensor) -> Tensor:
        return tensor.detach().index_select(self.axis, self.index)

    def put_(self, tensor: Tensor, values: Tensor) -> None:
        tensor.index_copy_(self.axis, self.index, values.to(tensor.dtype))

    def record(self) -> dict[str, Tensor]:
        return {"index": self.index.cpu()}
