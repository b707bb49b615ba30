"""Any weight as a grid of competitors, and the exact choice among them.

A weight ``[out, in, *kernel]`` is seen as ``[rows, competitors, atom]``: the competitors of a row compete for that row's places,
and the weights of one atom are kept or dropped together. Which axes are which is what makes a pattern
(:mod:`openwork.patterns`); the choice is one top-k over the middle axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from openwork.kernels.ranking import largest
from openwork.positions import ascending

Shape = tuple[int, ...]


def top_k(scores: Tensor, k: int) -> Tensor:
    """Mark the ``k`` largest scores of every row, exactly.

    Ties go to the lowest index, so the count is always ``k`` and the result never depends on the device's sort. NaN counts
    as the lowest score of all.

    Args:
        scores: ``[..., n]``, any real dtype.
        k: how many to mark in each row, ``0 <= k <= n``.

    Returns:
        Boolean tensor of the shape of ``scores`` with exactly ``k`` True in the last axis.
    """
    n = scores.shape[-1]
    if not 0 <= k <= n:
        raise ValueError(f"cannot keep {k} of {n} competitors: ask for a number between 0 and {n}")
    if k in (0, n):
        return torch.full_like(scores, k == n, dtype=torch.bool)
    if scores.dim() == 1:
        return largest(scores, k)
    if scores.is_floating_point():
        scores = torch.where(scores.isnan(), -math.inf, scores)
    threshold = scores.kthvalue(n - k + 1, dim=-1, keepdim=True).values
    above = scores > threshold
    tied = scores == threshold
    places_left = k - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1) <= places_left))


@dataclass(frozen=True)
class Grid:
    """How one weight shape is seen as ``[rows, competitors, atom]``: split every axis, then permute the pieces."""

    split: Shape
    row_axes: Shape
    competitor_axes: Shape
    atom_axes: Shape

    @cached_property
    def rows(self) -> int:
        return math.prod(self.split[a] for a in self.row_axes)

    @cached_property
    def competitors(self) -> int:
        return math.prod(self.split[a] for a in self.competitor_axes)

    @cached_property
    def atom(self) -> int:
        return math.prod(self.split[a] for a in self.atom_axes)

    @property
    def atoms(self) -> int:
        """Number of atoms of the whole weight; atom ``a`` is competitor ``a % competitors`` of row ``a // competitors``."""
        return self.rows * self.competitors

    @property
    def plain(self) -> bool:
        """True where an atom is simply a flat position: no arithmetic is needed then."""
        order = self.row_axes + self.competitor_axes + self.atom_axes
        return self.atom == 1 and order == tuple(range(len(self.split)))

    def view(self, weight: Tensor) -> Tensor:
        """``weight`` of the grid's shape as ``[rows, competitors, atom]`` (a view where strides allow)."""
        order = self.row_axes + self.competitor_axes + self.atom_axes
        return weight.reshape(self.split).permute(order).reshape(self.rows, self.competitors, self.atom)

    def unview(self, grid: Tensor, shape: Shape) -> Tensor:
        """The inverse of :meth:`view`."""
        order = self.row_axes + self.competitor_axes + self.atom_axes
        pieces = grid.reshape([self.split[a] for a in order])
        inverse = [order.index(a) for a in range(len(order))]
        return pieces.permute(inverse).reshape(shape)

    def pool(self, scores: Tensor) -> Tensor:
        """Scores of atoms ``[rows, competitors]``: the sum over the weights of each atom."""
        view = self.view(scores)
        return view[..., 0] if self.atom == 1 else view.sum(-1)

    def expand(self, chosen: Tensor, shape: Shape) -> Tensor:
        """Boolean ``[rows, competitors]`` of chosen atoms to a mask of ``shape``."""
        return self.unview(chosen.unsqueeze(-1).expand(-1, -1, self.atom), shape)

    def atoms_of(self, positions: Tensor) -> Tensor:
        """The atom of each flat position of the weight, both int64. Takes memory of the size of ``positions`` only."""
        if self.plain:
            return positions
        return self._ravel(self._unravel(positions), self.row_axes + self.competitor_axes)

    def positions_of(self, atoms: Tensor) -> Tensor:
        """The flat positions of the weights of the given atoms, sorted ascending: ``len(atoms) * atom`` of them."""
        if self.plain:
            return ascending(atoms)
        order = self.row_axes + self.competitor_axes + self.atom_axes
        inside = torch.arange(self.atom, device=atoms.device)
        rest = (atoms.unsqueeze(-1) * self.atom + inside).flatten()
        pieces: dict[int, Tensor] = {}
        for axis in reversed(order):
            pieces[axis] = rest % self.split[axis]
            rest = rest // self.split[axis]
        flat = self._ravel([pieces[a] for a in range(len(self.split))], tuple(range(len(self.split))))
        return ascending(flat)

    def _unravel(self, positions: Tensor) -> list[Tensor]:
        pieces = []
        for size in reversed(self.split):
            pieces.append(positions % size)
            positions = positions // size
        return pieces[::-1]

    def _ravel(self, pieces: list[Tensor], axes: Shape) -> Tensor:
        flat = torch.zeros_like(pieces[0])
        for axis in axes:
            flat = flat * self.split[axis] + pieces[axis]
        return flat
