"""The table of a plan, to be iterated over, and printed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from openwork.grid import Shape
from openwork.method import Method
from openwork.patterns import Pattern
from openwork.tables import table
from openwork.weights import Weight


@dataclass(frozen=True)
class Row:
    """One line of a plan: a parameter, its pattern, how many connections it keeps, and why."""

    weight: Weight
    pattern: Pattern
    kept: int
    why: str
    sparse: bool
    fixed: bool = False
    """Whether its count is its own (an override, a stored topology) instead of a share of the total."""

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def shape(self) -> Shape:
        return self.weight.shape

    @property
    def numel(self) -> int:
        return math.prod(self.weight.shape)

    @property
    def sparsity(self) -> float:
        return 1.0 - self.kept / self.numel


@dataclass(frozen=True)
class Plan:
    """The table ``parameter -> (pattern, kept, why)`` of one model and method. Print it, or iterate over its rows."""

    method: Method
    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def sparse(self) -> tuple[Row, ...]:
        """The rows that the method works on."""
        return tuple(row for row in self.rows if row.sparse)

    @property
    def numel(self) -> int:
        """Connections in the parameters the method works on, before it does."""
        return sum(row.numel for row in self.sparse)

    @property
    def kept(self) -> int:
        """Connections that those keep."""
        return sum(row.kept for row in self.sparse)

    @property
    def sparsity(self) -> float:
        """Achieved sparsity over the parameters the method works on."""
        return 1.0 - self.kept / self.numel if self.numel else 0.0

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Names of the parameters that keep nothing: what comes after them does not see the input."""
        return tuple(row.name for row in self.sparse if not row.kept)

    @property
    def asked(self) -> str:
        """What was asked for, in words."""
        if self.method.reads_zeros:
            return "the zeros of the model"
        return (
            f"{self.method.kept} kept"
            if self.method.kept is not None
            else f"sparsity {self.method.sparsity:g}"
        )

    def __str__(self) -> str:
        header = ("parameter", "shape", "pattern", "sparsity", "density", "kept", "of", "why")
        lines = [
            (
                row.name,
                "x".join(map(str, row.shape)),
                str(row.pattern) if row.sparse else "-",
                f"{row.sparsity:.4f}",
                f"{1 - row.sparsity:.4f}",
                str(row.kept),
                str(row.numel),
                row.why,
            )
            for row in self.rows
        ]
        total = f"{self.method.name}: asked {self.asked}; sparsity {self.sparsity:.6f}, {self.kept} of {self.numel} kept"
        return "\n".join([*table(header, lines, numbers=header[3:7]), total, *map(collapse, self.collapsed)])


def collapse(name: str) -> str:
    """What to say of a parameter without a connection."""
    return f"{name} keeps no connection, so nothing passes it: ask for less sparsity, exclude it, or choose another allocation"
