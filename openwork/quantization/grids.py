"""What a grid is: levels, and where they lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
"""Of the errors of groups ``[..., n]``, one number for each group ``[...]``."""

SCALES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""What a scale may be stored as."""


def squared(error: Tensor) -> Tensor:
    """The sum of squares of each group."""
    return error.square().sum(-1)


@dataclass(frozen=True)
class Placement:
    """Where the levels of groups of weights lie: at ``(level - zero) * scale``.

    Attributes:
        scale: ``[...]``, one positive number for each group.
        zero: ``[...]``, the level that stands for zero.
    """

    scale: Tensor
    zero: Tensor

    def __getitem__(self, index: object) -> Placement:
        return Placement(self.scale[index], self.zero[index])  # type: ignore[index]

    def where(self, chosen: Tensor, other: Placement) -> Placement:
        """The placement itself where ``chosen [...]``, the other one elsewhere."""
        return Placement(
            torch.where(chosen, self.scale, other.scale), torch.where(chosen, self.zero, other.zero)
        )


class Grid(ABC):
    """A set of ``2 ** bits`` levels, by code. Subclasses are frozen dataclasses.

    Attributes:
        bits: of a code, 1 to 8.
        holds_zero: whether zero is a level wherever the levels lie.
    """

    bits: int

    @property
    @abstractmethod
    def holds_zero(self) -> bool: ...

    @abstractmethod
    def fit(self, values: Tensor, loss: Loss | None = None) -> Placement:
        """Where the levels should lie for groups of values.

        Args:
            values: ``[..., n]``, finite; a group is a row of the last axis.
            loss: what a search for the best placement makes small; the grid's own if None.

        Returns:
            One placement for each group, ``[...]``.
        """

    @abstractmethod
    def encode(self, values: Tensor, at: Placement) -> Tensor:
        """Codes (uint8) of the nearest levels; ``at`` broadcasts against ``values``."""

    @abstractmethod
    def decode(self, codes: Tensor, at: Placement) -> Tensor:
        """Values of codes, of the dtype of the scale."""

    @property
    @abstractmethod
    def placement_bits(self) -> int:
        """Bits that store the placement of one group."""

    def round(self, values: Tensor, at: Placement) -> Tensor:
        """``values`` moved to the nearest level. Doing it twice changes nothing more."""
        return self.decode(self.encode(values, at), at).to(values.dtype)


def best(
    grid: Grid, values: Tensor, candidates: Iterable[Placement], loss: Loss = squared
) -> tuple[Placement, Tensor]:
    """Of several placements the one with the smallest loss, group by group; the first of equals.

    Returns:
        The placements ``[...]`` and their losses ``[...]``.
    """
    found: tuple[Placement, Tensor] | None = None
    for at in candidates:
        error = loss(grid.round(values, Placement(at.scale.unsqueeze(-1), at.zero.unsqueeze(-1))) - values)
        if found is None:
            found = at, error
        else:
            better = error < found[1]
            found = at.where(better, found[0]), torch.where(better, error, found[1])
    if found is None:
        raise ValueError("there is no placement to choose from")
    return found


def check_finite(values: Tensor) -> None:
    """Raise ValueError where a value has no nearest level."""
    if not bool(values.isfinite().all()):
        raise ValueError("NaN or infinite weights have no nearest level: nothing was quantised")


def check_scales(name: str) -> None:
    """Raise ValueError unless a scale can be stored so."""
    if name not in SCALES:
        raise ValueError(f"scales are stored as one of {', '.join(SCALES)}; got {name!r}")
