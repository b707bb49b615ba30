"""Which masks are legal.

A pattern answers one question: *which connections compete with one another for a place, and which of them come and go
together?* It does so with a single transformation. Any weight ``[out, in, *kernel]`` is seen as a grid

    ``[rows, competitors, atom]``

where the ``competitors`` of one row compete for that row's places, and the ``atom`` weights of one competitor are kept or
dropped together. One exact top-k over the middle axis then serves every pattern and every method:

===================  =================  ===========================  ==================
pattern              rows               competitors                  atom
===================  =================  ===========================  ==================
``Unstructured()``   1                  all weights                  one weight
``NM(2, 4)``         each 4 inputs      those 4 inputs                one weight
``AnyNM(8)``         each 8 inputs      those 8 inputs                one weight
``FanIn()``          output units       the inputs of one unit       one weight
``Block(4, 1)``      1                  all blocks                   4 outputs x 1 input
``Groups(0)``        1                  output units (channels)      all weights of one
===================  =================  ===========================  ==================

Everything here is a pure function of shapes and tensors; nothing is changed in place.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any mask: every weight competes with every other weight of its parameter."""

    def misfit(self, shape: Shape) -> str | None:
        return None

    def grid(self, shape: Shape) -> Grid:
        return Grid(shape, (), tuple(range(len(shape))), ())

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class NM(Pattern):
    """Exactly ``keep`` of every ``of`` consecutive inputs, for each output (and each kernel position).

    ``NM(2, 4)``, written ``"2:4"``, keeps 2 of every 4. The count does not depend on the sparsity asked for elsewhere.
    """

    keep: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= self.of or self.of < 1:
            raise ValueError(
                f"NM keeps `keep` of every `of` inputs, 0 <= keep <= of; got keep={self.keep}, of={self.of}"
            )

    def misfit(self, shape: Shape) -> str | None:
        if len(shape) < 2:
            return "it needs an input axis"
        return f"{shape[1]} inputs are no multiple of {self.of}" if shape[1] % self.of else None

    def grid(self, shape: Shape) -> Grid:
        self._fitting(shape)
        split = (shape[0], shape[1] // self.of, self.of, *shape[2:])
        return Grid(split, (0, 1, *range(3, len(split))), (2,), ())

    def places(self, shape: Shape, kept: int) -> int:
        return self.keep

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"


@dataclass(frozen=True)
class AnyNM(Pattern):
    """n of every ``of`` consecutive inputs, with an n of its own for each weight: the nearest to what an allocation gives it.

    Written ``"n:8"``. With ``allocation="uniform"`` and half of the weights it is ``4:8`` everywhere; an allocation that looks at
    the layers makes ``3:8`` of one and ``5:8`` of another, each as fast as such a pattern is. A plan names the n of each.
    """

    of: int

    def __post_init__(self) -> None:
        if self.of < 1:
            raise ValueError(f"n of every `of` inputs, of >= 1; got of={self.of}")

    def misfit(self, shape: Shape) -> str | None:
        return NM(0, self.of).misfit(shape)

    def grid(self, shape: Shape) -> Grid:
        return NM(0, self.of).grid(shape)

    def places(self, shape: Shape, kept: int) -> int:
        rows = self.grid(shape).rows
        return min((2 * kept + rows) // (2 * rows), self.of) if rows else 0

    def settled(self, shape: Shape, kept: int) -> NM:
        return NM(self.places(shape, kept), self.of)

    def __str__(self) -> str:
        return f"n:{self.of}"


@dataclass(frozen=True)
class Block(Pattern):
    """Blocks of ``height`` consecutive outputs times ``width`` consecutive inputs, kept or dropped whole.

    ``Block(r, 1)`` is a row block: ``r`` outputs share one list of inputs, which a CPU computes at nearly dense speed per
    weight (Elsen et al., Fast Sparse ConvNets, 2020).
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"a block has at least 1 output and 1 input; got {self.height} x {self.width}")

    def misfit(self, shape: Shape) -> str | None:
        if len(shape) < 2:
            return "it needs an input axis"
        if shape[0] % self.height:
            return f"{shape[0]} outputs are no multiple of {self.height}"
        return f"{shape[1]} inputs are no multiple of {self.width}" if shape[1] % self.width else None

    def grid(self, shape: Shape) -> Grid:
        self._fitting(shape)
        split = (shape[0] // self.height, self.height, shape[1] // self.width, self.width, *shape[2:])
        return Grid(split, (), (0, 2, *range(4, len(split))), (1, 3))

    def __str__(self) -> str:
        return f"block {self.height}x{self.width}"


@dataclass(frozen=True)
class FanIn(Pattern):
    """Constant fan-in: every output unit has the same number of inputs.

    Args:
        inputs: that number; None (default) takes it from the sparsity asked for, rounded down.
        idle: whether units may also have no inputs at all, as those that :class:`openwork.SRigL` gives up.
    """

    inputs: int | None = None
    idle: bool = False

    def misfit(self, shape: Shape) -> str | None:
        if len(shape) < 2:
            return "it needs an input axis"
        available = math.prod(shape[1:])
        if self.inputs is not None and not 0 <= self.inputs <= available:
            return f"a unit has {available} inputs, {self.inputs} were asked for"
        return None

    def grid(self, shape: Shape) -> Grid:
        self._fitting(shape)
        return Grid(shape, (0,), tuple(range(1, len(shape))), ())

    def places(self, shape: Shape, kept: int) -> int:
        return super().places(shape, kept) if self.inputs is None else self.inputs

    def allows(self, mask: Tensor) -> bool:
        fan_in = mask.flatten(1).sum(1)
        working = fan_in[fan_in > 0] if self.idle else fan_in
        return not len(working) or bool(
            (working == (working[0] if self.inputs is None else self.inputs)).all()
        )

    def __str__(self) -> str:
        return "fan-in" if self.inputs is None else f"fan-in {self.inputs}"


@dataclass(frozen=True)
class Groups(Pattern):
    """Whole slices along one axis: ``Groups(0)`` output units or channels, ``Groups(1)`` inputs."""

    axis: int = 0

    def misfit(self, shape: Shape) -> str | None:
        return None if 0 <= self.axis < len(shape) else f"it has no axis {self.axis}"

    def grid(self, shape: Shape) -> Grid:
        self._fitting(shape)
        return Grid(shape, (), (self.axis,), tuple(a for a in range(len(shape)) if a != self.axis))

    def __str__(self) -> str:
        return f"groups {self.axis}"


@dataclass(frozen=True)
class Gates(Pattern):
    """The same mask for each of ``count`` gates whose weights are stacked along the outputs: 4 in an LSTM, 3 in a GRU.

    A connection between two units leaves or stays in all gates at once, so that the recurrent matrix is one graph between units.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a layer has at least 1 gate; got {self.count}")

    def misfit(self, shape: Shape) -> str | None:
        if len(shape) < 2:
            return "it needs an input axis"
        return f"{shape[0]} outputs are no multiple of {self.count} gates" if shape[0] % self.count else None

    def grid(self, shape: Shape) -> Grid:
        self._fitting(shape)
        split = (self.count, shape[0] // self.count, *shape[1:])
        return Grid(split, (), tuple(range(1, len(split))), (0,))

    def __str__(self) -> str:
        return f"gates {self.count}"


_SPELLINGS: tuple[tuple[str, type[Pattern]], ...] = (
    (r"unstructured", Unstructured),
    (r"(\d+):(\d+)", NM),
    (r"n:(\d+)", AnyNM),
    (r"block[ :]?(\d+)x(\d+)", Block),
    (r"fan[-_]in(?:[ :](\d+))?", FanIn),
    (r"groups[ :](\d+)", Groups),
    (r"gates[ :](\d+)", Gates),
)


def pattern(spelling: str | Pattern) -> Pattern:
    """Read a pattern from its spelling: ``"unstructured"``, ``"2:4"``, ``"n:8"``, ``"block 4x1"``, ``"fan-in"``, ``"fan-in 32"``,
    ``"groups 0"``, ``"gates 4"``. A pattern is returned as it is, so ``pattern(str(p)) == p`` for every pattern.
    """
    if isinstance(spelling, Pattern):
        return spelling
    for form, cls in _SPELLINGS:
        if match := re.fullmatch(form, spelling.strip().lower()):
            return cls(*(int(number) for number in match.groups() if number is not None))
    raise ValueError(
        f"unknown pattern {spelling!r}: write unstructured, 2:4 (keep 2 of every 4 inputs), n:8 (n as the sparsity says), "
        "block 4x1 (4 outputs x 1 input), "
        "fan-in, fan-in 32, groups 0, or gates 4 (the same mask for every gate of an LSTM)"
    )
