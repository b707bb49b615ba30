"""A topology in CSR form, checked once at the border: after this, no kernel looks for bad indices again."""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.kernels import native

SIZE_LIMIT = 2**26 - 1
"""Rows and columns: a word of the weight stream holds 64 times the column in 32 bits (csrc/stream.h)."""

KEPT_LIMIT = 2**31 - 2**20
"""Nonzeros: positions are int32, with some room for the padding between the parts of a weight stream."""


def validate(crow: Tensor, col: Tensor, shape: tuple[int, int], name: str) -> None:
    """Raise unless (crow, col) is a CSR topology of `shape` whose every index is in range.

    Args:
        crow: int32 [rows + 1] row pointers, from 0 to the number of nonzeros.
        col: int32 [kept] columns, strictly ascending in each row.
        shape: (rows, columns).
        name: what to call the matrix in errors.

    Raises:
        TypeError: wrong dtype.
        ValueError: not a valid CSR topology, or too large for 32-bit indices.
    """
    rows, columns = shape
    for label, tensor in (("crow", crow), ("col", col)):
        if tensor.dtype != torch.int32:
            raise TypeError(
                f"{name}: {label} must be int32, found {tensor.dtype}. Convert it with .to(torch.int32)."
            )
        if tensor.dim() != 1:
            raise ValueError(f"{name}: {label} must have one dimension, found {list(tensor.shape)}.")
    if not (0 <= rows <= SIZE_LIMIT and 0 <= columns <= SIZE_LIMIT):
        raise ValueError(f"{name}: {rows} x {columns} is not possible; sizes must be 0 ... {SIZE_LIMIT}.")
    if crow.device != col.device:
        raise ValueError(
            f"{name}: crow is on {crow.device} and col on {col.device}; move them to one device."
        )
    if crow.numel() != rows + 1:
        raise ValueError(f"{name}: crow must have rows + 1 = {rows + 1} entries, found {crow.numel()}.")
    kept = col.numel()
    if kept > KEPT_LIMIT:
        raise ValueError(f"{name}: {kept} nonzeros are more than int32 positions allow; split the matrix.")
    if is_topology(crow, col, shape):
        return
    first, last = int(crow[0]), int(crow[-1])
    if (first, last) != (0, kept):
        raise ValueError(
            f"{name}: crow must go from 0 to the {kept} nonzeros of col, found {first} to {last}."
        )
    falls = torch.nonzero(crow[1:] < crow[:-1])
    if falls.numel():
        row = int(falls[0])
        raise ValueError(
            f"{name}: crow must not decrease, found {int(crow[row])} then {int(crow[row + 1])} at row {row}."
        )
    if kept:
        _validate_columns(crow, col, columns, name)


def is_topology(crow: Tensor, col: Tensor, shape: tuple[int, int]) -> bool:
    """Whether int32 crow [rows + 1], col [kept] on the CPU are proven to be a topology, in one pass. False also says that nothing
    is known, as on other devices.
    """
    if not (native.enabled() and crow.is_cpu and col.is_cpu):
        return False
    crow, col = crow.contiguous(), col.contiguous()
    threads = native.threads(col.numel())
    proven: bool = native.library().is_topology(crow.data_ptr(), col.data_ptr(), *shape, col.numel(), threads)
    return proven


def _validate_columns(crow: Tensor, col: Tensor, columns: int, name: str) -> None:
    low, high = int(col.min()), int(col.max())
    if low < 0 or high >= columns:
        raise ValueError(f"{name}: columns must be 0 ... {columns - 1}, found {low} ... {high}.")
    ascending = col[1:] > col[:-1]
    starts = crow[1:-1].long()
    ascending[starts[(starts > 0) & (starts < col.numel())] - 1] = True  # a new row may start anywhere
    if not bool(ascending.all()):
        entry = int(torch.nonzero(~ascending)[0]) + 1
        raise ValueError(
            f"{name}: row {int(row_of(crow, col)[entry])} has column {int(col[entry])} after "
            f"{int(col[entry - 1])}; "
            "columns must be ascending without repeats in each row. Sort them, values too, and merge repeats."
        )


def row_of(crow: Tensor, col: Tensor) -> Tensor:
    """The row of each nonzero, int64 [kept]."""
    rows = torch.arange(crow.numel() - 1, device=crow.device)
    return torch.repeat_interleave(rows, (crow[1:] - crow[:-1]).long(), output_size=col.numel())


def flat_positions(crow: Tensor, col: Tensor, columns: int) -> Tensor:
    """The row-major positions of the nonzeros in the dense matrix, int64 [kept], ascending. The indices are valid."""
    if not (native.enabled() and crow.is_cpu):
        return row_of(crow, col) * columns + col
    crow, col = crow.contiguous(), col.contiguous()
    positions = col.new_zeros(col.numel(), dtype=torch.int64)
    native.library().lay_flat(
        crow.data_ptr(), col.data_ptr(), crow.numel() - 1, columns, col.numel(), positions.data_ptr(),
        native.threads(col.numel()),
    )  # fmt: skip
    return positions


def cut_into_rows(positions: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """CSR (crow [rows + 1], col [kept], int32) of flat row-major positions: the inverse of `flat_positions`. Of positions that
    are not ascending or out of range it is no topology, see `is_topology`.
    """
    rows, columns = shape
    if native.enabled() and positions.is_cpu:
        positions = positions.contiguous()
        crow = positions.new_zeros(rows + 1, dtype=torch.int32)
        col = positions.new_zeros(positions.numel(), dtype=torch.int32)
        native.library().cut_into_rows(
            positions.data_ptr(), positions.numel(), rows, columns, crow.data_ptr(), col.data_ptr(),
            native.threads(positions.numel()),
        )  # fmt: skip
        return crow, col
    starts = torch.arange(rows + 1, device=positions.device) * columns
    return torch.searchsorted(positions, starts).int(), (positions % max(columns, 1)).int()


def marked_positions(crow: Tensor, col: Tensor, columns: int, marked: Tensor) -> Tensor:
    """Those of `flat_positions` that are marked, boolean [kept]."""
    if not (native.enabled() and crow.is_cpu):
        return flat_positions(crow, col, columns)[marked]
    crow, col, marked = crow.contiguous(), col.contiguous(), marked.contiguous()
    positions = col.new_empty(int(marked.count_nonzero()), dtype=torch.int64)
    native.library().lay_flat_marked(
        crow.data_ptr(), col.data_ptr(), crow.numel() - 1, columns, marked.data_ptr(), positions.data_ptr(),
        native.threads(col.numel()),
    )  # fmt: skip
    return positions


def rewired(
    crow: Tensor, col: Tensor, columns: int, stays: Tensor, grown: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The topology after some nonzeros have left and others were grown, natively and in one pass.

    Args:
        crow, col: a topology on the CPU.
        columns: of the matrix.
        stays: boolean [kept], which nonzeros stay.
        grown: int64, the flat positions of the new ones, ascending, none of one that stays.

    Returns:
        The new crow and col, and for each of the new nonzeros where it was among the old ones, int32, -1 where it is new. One
        that left and was grown again was there.
    """
    crow, col, stays, grown = crow.contiguous(), col.contiguous(), stays.contiguous(), grown.contiguous()
    kept = int(stays.count_nonzero()) + grown.numel()
    new_crow, new_col, origin = torch.empty_like(crow), col.new_empty(kept), col.new_empty(kept)
    native.library().rewire(
        crow.data_ptr(), col.data_ptr(), crow.numel() - 1, columns, stays.data_ptr(), grown.data_ptr(),
        grown.numel(), new_crow.data_ptr(), new_col.data_ptr(), origin.data_ptr(), native.threads(kept),
    )  # fmt: skip
    return new_crow, new_col, origin
