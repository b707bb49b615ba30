"""The walk a sparse matrix is computed in, made once per topology.

A kernel does not read a CSR matrix row by row. It takes a block of columns whose activations fit in the
first-level cache, and in it the rows sorted by how many nonzeros they have there: a *run* is the nonzeros of
one row in one block. Values and columns stay where they are, in CSR order; the walk only says in which order
to visit them, so a gradient or an optimizer never sees another order.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import native
from openwork.kernels.topology import flat_positions, row_of, validate


def _first_level_cache() -> int:
    try:
        size = os.sysconf("SC_LEVEL1_DCACHE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a Unix, or one that does not tell
        size = 0
    return size if size > 0 else 32 * 1024


TILE_WIDTH = 64
"""Samples in a feature-major tile (csrc/tiles.h)."""

ALIGNMENT = 64
"""Bytes to which tiles are aligned: one cache line."""

BUCKETS = 26
"""Runs of 0 ... 24 nonzeros have a bucket each, longer ones share the last (csrc/runs.h)."""

RUN_PADDING = 16
"""Entries behind the last run that kernels may read ahead (csrc/runs.h)."""

FIRST_LEVEL_CACHE = _first_level_cache()
"""Bytes of the data cache closest to a core."""

PERMUTED = 5
"""Tensors in the walk of a transposed matrix; that of the matrix itself has four."""


class Nonzeros(ABC):
    """What every prepared topology has: its nonzeros in CSR order, and where they are in the weight."""

    crow: Tensor
    col: Tensor
    _positions: Tensor | None

    @property
    @abstractmethod
    def columns(self) -> int:
        """Columns of the weight as a matrix."""

    @property
    def kept(self) -> int:
        """Number of nonzeros."""
        return self.col.numel()

    @property
    def positions(self) -> Tensor:
        """Flat row-major positions of the nonzeros, int64 [kept], made on first use."""
        if self._positions is None:
            with torch._C._DisableFuncTorch():  # made within a transform, they would not outlive it
                self._positions = flat_positions(self.crow, self.col, self.columns)
        return self._positions


@dataclass(eq=False)
class Prepared(Nonzeros):
    """A validated sparse matrix [rows, columns] and what the kernels need to compute with it.

    Belongs to one topology: prepare again when connections change. It holds `crow` and `col` as given,
    without a
    copy: do not change them in place, they are not checked again.

    Attributes:
        crow: int32 [rows + 1].
        col: int32 [kept], ascending in each row.
        shape: (rows, columns) = (outputs, inputs).
        walk: the order of computing (csrc/runs.h): col; runs int32 [rows * blocks + RUN_PADDING, 3], each
            (row, first nonzero, length); buckets int32 [parts, blocks, BUCKETS], how many runs of each
            length; parts int32 [parts + 1, 3], first row, first run and first stream word of each part.
    """

    crow: Tensor
    col: Tensor
    shape: tuple[int, int]
    walk: list[Tensor] = field(repr=False)
    _transposed: list[Tensor] | None = field(default=None, repr=False)
    _positions: Tensor | None = field(default=None, repr=False)

    @property
    def columns(self) -> int:
        """Inputs."""
        return self.shape[1]

    @property
    def transposed(self) -> list[Tensor]:
        """The walk of the transposed matrix, made on first use.

        Its nonzeros stand in the order of the walk, so that the values, which come from all over, are all that is not read from
        front to back. Its fifth tensor has for each of its nonzeros the position in CSR order, int32 [kept].
        """
        if self._transposed is None:
            self._transposed = _transposed_walk(self.crow, self.col, self.shape, self.walk[2].shape[0])
        return self._transposed


def prepare(crow: Tensor, col: Tensor, shape: tuple[int, int], name: str = "the sparse matrix") -> Prepared:
    """Validate a CSR topology and prepare it for the kernels.

    Args:
        crow: int32 [rows + 1] row pointers.
        col: int32 [kept] columns, strictly ascending in each row.
        shape: (rows, columns), for a linear layer (outputs, inputs).
        name: what to call the matrix in errors.

    Raises:
        TypeError: wrong dtype.
        ValueError: not a valid CSR topology, or too large for 32-bit indices.
    """
    validate(crow, col, shape, name)
    crow, col = crow.contiguous(), col.contiguous()
    walk = _walk(crow, col, shape, part_count(col.numel()))
    return Prepared(crow, col, (int(shape[0]), int(shape[1])), walk)


def block_columns(rows: int, columns: int, kept: int) -> int:
    """Columns per block: as many as keep a tile in the first-level cache.

    All of them if a row would have less than four nonzeros in a block: reading its outputs again and again
    would cost more than the cache saves. Any choice gives the same bits.
    """
    block = FIRST_LEVEL_CACHE // (TILE_WIDTH * 4)
    return block if kept * block >= 4 * rows * columns else max(1, columns)


def walk_bytes(rows: int, columns: int, block: int, parts: int) -> int:
    """Bytes of a walk beside the columns of its nonzeros."""
    blocks = max(1, -(-columns // block))
    return 12 * (rows * blocks + RUN_PADDING) + 4 * parts * blocks * BUCKETS + 12 * (parts + 1)


def index_bytes(shape: tuple[int, int], kept: int, transposed: bool) -> int:
    """Bytes of a `Prepared` matrix, with the walk of the transposed matrix or without."""
    (rows, columns), parts = shape, part_count(kept)
    held = 4 * (rows + 1) + 4 * kept + transposed * 8 * kept
    if native.enabled():
        held += walk_bytes(rows, columns, block_columns(rows, columns, kept), parts)
        held += transposed * walk_bytes(columns, rows, block_columns(columns, rows, kept), parts)
    return held


def part_count(kept: int) -> int:
    """Parts the rows are cut into: one a thread, but not so small that sorting their runs gains nothing."""
    return max(1, min(torch.get_num_threads(), kept // 2048))


def _walk(crow: Tensor, col: Tensor, shape: tuple[int, int], parts: int) -> list[Tensor]:
    if not (native.enabled() and crow.device.type == "cpu"):
        nothing = crow.new_zeros(0)
        return [col, nothing, nothing, nothing]
    rows, columns = shape
    block = block_columns(rows, columns, col.numel())
    return [col, *torch.ops.openwork.plan_runs(crow, col, rows, columns, block, parts)]


def _transposed_walk(crow: Tensor, col: Tensor, shape: tuple[int, int], parts: int) -> list[Tensor]:
    rows, columns = shape
    if not (native.enabled() and crow.device.type == "cpu"):
        nothing = crow.new_zeros(0)
        _, row, permutation = torch.ops.openwork.transpose(crow, col, columns)
        return [row, nothing, nothing, nothing, permutation]
    block = block_columns(columns, rows, col.numel())
    runs, buckets, bounds, row, permutation = torch.ops.openwork.plan_transposed_runs(
        crow, col, rows, columns, block, parts
    )
    return [row, runs, buckets, bounds, permutation]


_library = torch.library.Library("openwork", "FRAGMENT")
_library.define(
    "plan_runs(Tensor crow, Tensor col, SymInt rows, SymInt columns, SymInt block, SymInt parts)"
    " -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "plan_transposed_runs(Tensor crow, Tensor col, SymInt rows, SymInt columns, SymInt block, SymInt parts)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "transpose(Tensor crow, Tensor col, SymInt columns) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)

Three = tuple[Tensor, Tensor, Tensor]
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _runs_fake(crow: Tensor, col: Tensor, rows: int, columns: int, block: int, parts: int) -> Three:
    blocks = max(1, (columns + block - 1) // block)
    return (
        crow.new_empty(rows * blocks + RUN_PADDING, 3),
        crow.new_empty(parts, blocks, BUCKETS),
        crow.new_empty(parts + 1, 3),
    )


def _plan_runs(crow: Tensor, col: Tensor, rows: int, columns: int, block: int, parts: int) -> Three:
    planned = _runs_fake(crow, col, rows, columns, block, parts)
    addresses = [tensor.data_ptr() for tensor in planned]
    threads = native.threads(col.numel())
    native.library().plan_runs(
        crow.data_ptr(), col.data_ptr(), rows, columns, block, parts, *addresses, threads
    )
    return planned


def _transposed_fake(crow: Tensor, col: Tensor, rows: int, columns: int, block: int, parts: int) -> Five:
    planned = _runs_fake(crow, col, columns, rows, block, parts)
    return *planned, torch.empty_like(col), torch.empty_like(col)


def _plan_transposed_runs(crow: Tensor, col: Tensor, rows: int, columns: int, block: int, parts: int) -> Five:
    planned = _transposed_fake(crow, col, rows, columns, block, parts)
    addresses = [tensor.data_ptr() for tensor in planned]
    threads = native.threads(col.numel())
    native.library().plan_transposed_runs(
        crow.data_ptr(), col.data_ptr(), rows, columns, block, parts, *addresses, threads
    )
    return planned


def _transpose_fake(crow: Tensor, col: Tensor, columns: int) -> Three:
    return crow.new_empty(columns + 1), torch.empty_like(col), torch.empty_like(col)


def _transpose(crow: Tensor, col: Tensor, columns: int) -> Three:
    if not native.enabled():
        return _transpose_reference(crow, col, columns)
    transposed = _transpose_fake(crow, col, columns)
    addresses = [tensor.data_ptr() for tensor in transposed]
    threads = native.threads(col.numel())
    native.library().transpose(
        crow.data_ptr(), col.data_ptr(), crow.numel() - 1, columns, *addresses, threads
    )
    return transposed


def _transpose_reference(crow: Tensor, col: Tensor, columns: int) -> Three:
    order = torch.argsort(col, stable=True)
    counts = torch.bincount(col, minlength=columns)
    start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return start.to(crow.dtype), row_of(crow, col)[order].to(col.dtype), order.to(col.dtype)


_library.impl("plan_runs", _plan_runs, "CPU")
_library.impl("plan_transposed_runs", _plan_transposed_runs, "CPU")
_library.impl("transpose", _transpose, "CPU")
_library.impl("transpose", _transpose_reference, "CUDA")
torch.library.register_fake("openwork::plan_runs", _runs_fake, lib=_library)
torch.library.register_fake("openwork::plan_transposed_runs", _transposed_fake, lib=_library)
torch.library.register_fake("openwork::transpose", _transpose_fake, lib=_library)
