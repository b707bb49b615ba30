"""What an allocation is: a rule that splits a total among parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from openwork.grid import Shape


class Allocation(ABC):
    """A rule that splits a total among parameters. Values are small, frozen, printable and comparable."""

    needs_scores = False
    """Whether :meth:`counts` looks at scores."""

    @abstractmethod
    def counts(
        self, shapes: Sequence[Shape], total: int, scores: Sequence[Tensor] | None = None
    ) -> list[int]:
        """How many connections each parameter keeps.

        Args:
            shapes: shape of each parameter, ``[out, in, *kernel]``, in order from input to output.
            total: connections kept in all of them together.
            scores: for allocations that rank: one tensor a parameter, one entry a connection, higher = keep.

        Returns:
            One integer a parameter, none above its size, summing to ``total``.
        """
