"""What a pattern is: a family of legal masks, seen as a grid of competitors."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from openwork.grid import Grid, Shape, top_k


class Pattern(ABC):
    """A family of legal masks. Values are small, frozen, printable and comparable."""

    @abstractmethod
    def misfit(self, shape: Shape) -> str | None:
        """Why this pattern cannot describe masks of ``shape`` (``[out, in, *kernel]``), or None where it can."""

    @abstractmethod
    def grid(self, shape: Shape) -> Grid:
        """The competition grid of a weight of ``shape``. Raises ValueError with :meth:`misfit`'s reason."""

    def places(self, shape: Shape, kept: int) -> int:
        """How many atoms each row may keep when ``kept`` weights are wanted: never more than wanted."""
        grid = self.grid(shape)
        return min(kept // (grid.rows * grid.atom), grid.competitors)

    def legal_kept(self, shape: Shape, kept: int) -> int:
        """The count of weights that a legal mask has when ``kept`` are wanted."""
        grid = self.grid(shape)
        return self.places(shape, kept) * grid.rows * grid.atom

    def choose(self, scores: Tensor, kept: int) -> Tensor:
        """The legal mask with the highest total score.

        Args:
            scores: ``[out, in, *kernel]``, higher = keep.
            kept: how many weights are wanted; :meth:`legal_kept` of them are kept, ties included.

        Returns:
            Boolean mask of the shape of ``scores``.
        """
        shape = tuple(scores.shape)
        grid = self.grid(shape)
        return grid.expand(top_k(grid.pool(scores), self.places(shape, kept)), shape)

    def allows(self, mask: Tensor) -> bool:
        """Whether ``mask`` could have come from this pattern: whole atoms, and as many in every row as it says."""
        shape = tuple(mask.shape)
        grid = self.grid(shape)
        view = grid.view(mask)
        whole = bool((view.all(-1) == view.any(-1)).all())
        per_row = view.any(-1).sum(-1)
        return whole and bool((per_row == self.places(shape, int(mask.sum()))).all())

    def settled(self, shape: Shape, kept: int) -> Pattern:
        """The pattern of a weight of ``shape`` once it is known to keep ``kept``: itself, where it leaves nothing open."""
        return self

    def _fitting(self, shape: Shape) -> None:
        if reason := self.misfit(shape):
            raise ValueError(f"pattern {self} does not fit a weight of shape {list(shape)}: {reason}")
