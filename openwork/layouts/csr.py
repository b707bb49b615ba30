"""Compressed sparse rows: which connections one ``[out, in]`` matrix keeps.

The topology alone; the weights live beside it as a vector ``values [kept]`` in row-major order, so that one
topology can serve a weight, its gradient and every state an optimizer keeps for it. A kept connection whose
weight is zero (freshly grown) is therefore still kept: nothing here ever looks for zeros.

===========  ===================  ==========================================================
``crow``     int32 ``[out + 1]``  row ``i`` owns the entries ``crow[i] : crow[i + 1]``
``col``      int32 ``[kept]``     input of each entry, strictly ascending inside a row
===========  ===================  ==========================================================
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int32, Int64, Shaped
from torch import Tensor

from openwork.kernels.topology import cut_into_rows, flat_positions, is_topology
from openwork.positions import distinct

LARGEST = 2**31 - 1
"""The largest number of rows, of columns and of kept connections: what an int32 index can count."""

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


@dataclass(frozen=True, eq=False)
class CSR:
    """The kept connections of one matrix. Two are equal when they keep the same connections.

    The constructors ``from_mask``, ``from_positions`` and ``random`` are right by construction. Arrays that
    come from elsewhere go through :meth:`validate` once, before anything reads memory through them. Treat
    the arrays as read-only.

    Attributes:
        shape: ``(out, in)``.
        crow: int32 ``[out + 1]``, row pointers.
        col: int32 ``[kept]``.
    """

    shape: tuple[int, int]
    crow: Int32[Tensor, " pointers"]
    col: Int32[Tensor, " kept"]

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "out in"]) -> CSR:
        """The connections where ``mask`` is True."""
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise ValueError(
                f"a topology comes from a boolean mask [out, in], not from {described(mask)}: "
                "pass `mask.bool()`, and reshape kernels to [out, rest]"
            )
        crow = mask.new_zeros(mask.shape[0] + 1, dtype=torch.int32)
        crow[1:] = mask.sum(1).cumsum(0)
        return cls((mask.shape[0], mask.shape[1]), crow, mask.nonzero()[:, 1].int())

    @classmethod
    def from_positions(cls, positions: Int64[Tensor, " kept"], shape: tuple[int, int]) -> CSR:
        """The connections at flat row-major ``positions`` (``row * in + column``), in memory of the size of
        the result.

        Args:
            positions: int64 ``[kept]``, strictly ascending.
            shape: ``(out, in)``.

        Raises:
            ValueError: positions out of order, repeated or out of range.
        """
        rows, columns = _checked_shape(shape)
        if positions.dtype != torch.int64 or positions.ndim != 1:
            raise ValueError(f"positions are a vector of int64, not {described(positions)}")
        crow, col = cut_into_rows(positions, shape)
        if not is_topology(crow, col, shape) and positions.numel():
            if not bool((positions[1:] > positions[:-1]).all()):
                raise ValueError(
                    "positions must be strictly ascending: sort them, and name each connection once"
                )
            if int(positions[0]) < 0 or int(positions[-1]) >= rows * columns:
                raise ValueError(
                    f"positions {int(positions[0])}..{int(positions[-1])} do not fit a {rows} x {columns} "
                    "matrix, "
                    f"whose positions are 0..{rows * columns - 1}"
                )
        return cls((rows, columns), crow, col)

    @classmethod
    def random(cls, shape: tuple[int, int], kept: int, generator: torch.Generator) -> CSR:
        """Exactly ``kept`` connections, every choice of them equally likely, in memory of the size of
        ``kept``.
        """
        total = shape[0] * shape[1]
        if not 0 <= kept <= min(total, LARGEST):
            raise ValueError(
                f"cannot keep {kept} connections of a {shape[0]} x {shape[1]} matrix, which has {total}"
            )
        return cls.from_positions(distinct(total, kept, generator), shape)

    @property
    def kept(self) -> int:
        """Number of kept connections."""
        return self.col.numel()

    @property
    def density(self) -> float:
        """Fraction of connections kept; 1 for a matrix that has none."""
        total = self.shape[0] * self.shape[1]
        return self.kept / total if total else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of the index arrays, without any values."""
        return self.crow.nbytes + self.col.nbytes

    @property
    def fan_in(self) -> Int64[Tensor, " out"]:
        """Connections kept by each output unit, int64 ``[out]``."""
        return self.crow.diff().long()

    def rows(self) -> Int64[Tensor, " kept"]:
        """Output unit of each entry, int64 ``[kept]``."""
        rows = torch.arange(self.shape[0], device=self.col.device)
        return rows.repeat_interleave(self.fan_in, output_size=self.kept)

    def positions(self) -> Int64[Tensor, " kept"]:
        """Flat row-major positions, int64 ``[kept]``, strictly ascending: the inverse of
        :meth:`from_positions`.
        """
        return flat_positions(self.crow, self.col, self.shape[1])

    def mask(self) -> Bool[Tensor, "out in"]:
        """Boolean ``[out, in]``, True = kept: the inverse of :meth:`from_mask`."""
        mask = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.bool, device=self.col.device)
        mask[self.positions()] = True
        return mask.view(self.shape)

    def dense(self, values: Shaped[Tensor, " kept"]) -> Shaped[Tensor, "out in"]:
        """The ``[out, in]`` matrix with ``values [kept]`` in place and zeros elsewhere; differentiable in
        ``values``.
        """
        if values.shape != self.col.shape:
            raise ValueError(f"{self.kept} connections need values [{self.kept}], not {described(values)}")
        if values.dtype in _SIGNED:  # torch has next to no operations on these
            return self.dense(values.view(_SIGNED[values.dtype])).view(values.dtype)
        dense = values.new_zeros(self.shape[0] * self.shape[1])
        # Not scatter_, which computes 16-bit floats and so changes the bits of a NaN.
        return dense.index_put_((self.positions(),), values).view(self.shape)

    def transpose(self) -> tuple[CSR, Int64[Tensor, " kept"]]:
        """The same connections seen from the inputs, and the plan that carries values over.

        Returns:
            The topology of the ``[in, out]`` matrix, and ``order``, int64 ``[kept]``: its values are
            ``values[order]``.
        """
        order = self.col.argsort(
            stable=True
        )  # entries come row by row, so rows stay ascending inside a column
        crow = self.crow.new_zeros(self.shape[1] + 1)
        crow[1:] = self.col.bincount(minlength=self.shape[1]).cumsum(0)
        return CSR((self.shape[1], self.shape[0]), crow, self.rows()[order].int()), order

    def to(self, device: torch.device | str) -> CSR:
        """The same topology on ``device``."""
        return CSR(self.shape, self.crow.to(device), self.col.to(device))

    @cached_property
    def digest(self) -> int:
        """A signed 64-bit number made from the contents, the same on every machine: fits an int64 tensor, so
        that processes can compare their topologies with one small all-gather.
        """
        digest = hashlib.blake2b(repr(self.shape).encode(), digest_size=8)
        for array in (self.crow, self.col):
            digest.update(array.cpu().contiguous().numpy().data)
        return int.from_bytes(digest.digest(), "little", signed=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CSR):
            return NotImplemented
        return (
            self.shape == other.shape
            and torch.equal(self.crow, other.crow.to(self.crow.device))
            and torch.equal(self.col, other.col.to(self.col.device))
        )

    def __hash__(self) -> int:
        return self.digest

    def validate(self, name: str) -> CSR:
        """Prove that every index is in range and in order; nothing is repaired. ``O(kept)``.

        Args:
            name: what to call this tensor in the error.

        Returns:
            Itself.

        Raises:
            ValueError: naming ``name`` and the first row that is wrong.
        """
        rows, columns = _checked_shape(self.shape, name)
        for part, array in (("crow", self.crow), ("col", self.col)):
            if array.dtype != torch.int32 or array.ndim != 1:
                raise ValueError(f"{name}: {part} is a vector of int32, not {described(array)}")
        if self.crow.numel() != rows + 1:
            raise ValueError(f"{name}: crow of {rows} rows has {rows + 1} entries, found {self.crow.numel()}")
        if int(self.crow[0]) != 0:
            raise ValueError(f"{name}: row 0 starts at entry {int(self.crow[0])} instead of 0")
        # Not diff(): in int32 the difference of two wild pointers may wrap around and look fine.
        falling = self.crow[1:] < self.crow[:-1]
        if bool(falling.any()):
            row = _first(falling)
            start, end = int(self.crow[row]), int(self.crow[row + 1])
            raise ValueError(f"{name}: row {row} starts at entry {start} and ends before it, at {end}")
        if int(self.crow[-1]) != self.kept:
            raise ValueError(
                f"{name}: row {rows - 1} ends at entry {int(self.crow[-1])}, but there are {self.kept} "
                "columns"
            )
        if is_topology(self.crow, self.col, self.shape):
            return self
        outside = (self.col < 0) | (self.col >= columns)
        if bool(outside.any()):
            entry = _first(outside)
            raise ValueError(
                f"{name}: row {self._row_of(entry)} names column {int(self.col[entry])}, "
                f"and the columns are 0..{columns - 1}"
            )
        unsorted = self.col[1:] <= self.col[:-1]
        starts = self.crow[1:-1].long()  # where a new row begins, columns may fall
        unsorted[starts[(starts > 0) & (starts < self.kept)] - 1] = False
        if bool(unsorted.any()):
            entry = _first(unsorted)
            before, after = int(self.col[entry]), int(self.col[entry + 1])
            raise ValueError(
                f"{name}: row {self._row_of(entry)} has column {after} after {before}; "
                "columns ascend inside a row and none is named twice"
            )
        return self

    def _row_of(self, entry: int) -> int:
        return int((self.crow[1:] <= entry).sum())


def _first(wrong: Tensor) -> int:
    return int(wrong.int().argmax())


def _checked_shape(shape: tuple[int, int], name: str = "topology") -> tuple[int, int]:
    rows, columns = shape
    if not (0 <= rows < LARGEST and 0 <= columns <= LARGEST):
        raise ValueError(
            f"{name}: a {rows} x {columns} matrix cannot be indexed with int32; the limit is {LARGEST}"
        )
    return rows, columns


def described(tensor: Tensor) -> str:
    """Dtype and shape, for errors."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
