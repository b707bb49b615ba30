"""A weight in oneDNN's own order: torch can neither copy nor pickle that, so both go through the ordinary one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor


class Reordered(ABC):
    """Base of layouts that hold such a weight."""

    weight: Tensor

    @abstractmethod
    def reordered(self, weight: Tensor) -> Tensor:
        """A dense weight in oneDNN's order."""

    def __getstate__(self) -> dict[str, Any]:
        """All it holds, the weight in the ordinary order."""
        return vars(self) | {"weight": self.weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.weight = self.reordered(state["weight"])
