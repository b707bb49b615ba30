"""The gradient of the dense weight, `G = dY^T X`: some rows of it, or some positions. G is never stored.

Where it is largest is found by walking it in tiles of rows, see `openwork.kernels.ranking`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openwork.kernels import linear, native
from openwork.kernels.execution import is_native
from openwork.kernels.index import prepare


def gradient_rows(pairs: Sequence[tuple[Tensor, Tensor]], first: int, last: int) -> Tensor:
    """Rows `first` to `last` of `dy^T x`, summed over pairs of x and dy.

    Natively for float32 on the CPU, where the bits do not depend on the number of threads, nor on how rows are cut into tiles.

    Args:
        pairs: one at least of x [batch, columns] and dy [batch, rows]; batches may differ.

    Returns:
        [last - first, columns].

    Raises:
        ValueError: shapes do not fit.
    """
    rows, columns = _shape(*pairs[0])
    for x, dy in pairs:
        if _shape(x, dy) != (rows, columns):
            raise ValueError(f"pairs must agree: a gradient {rows} x {columns} and one {_shape(x, dy)}.")
    if not 0 <= first <= last <= rows:
        raise ValueError(f"rows {first} to {last} are not among the {rows} of the gradient.")
    if not is_native(*(tensor for pair in pairs for tensor in pair)):
        total = pairs[0][1][:, first:last].T @ pairs[0][0]
        for x, dy in pairs[1:]:
            total.addmm_(dy[:, first:last].T, x)
        return total
    entries = pairs[0][0].new_empty(last - first, columns)
    filled = False
    for x, dy in pairs:
        if x.shape[0] == 0:
            continue
        x, dy = x.contiguous(), dy.contiguous()
        native.kernels().dense_gradient(
            x.data_ptr(), dy.data_ptr(), x.shape[0], columns, rows, first, last, filled, entries.data_ptr(),
            native.threads(x.shape[0] * entries.numel()),
        )  # fmt: skip
        filled = True
    return entries if filled else entries.zero_()


def gradient_at(x: Tensor, dy: Tensor, positions: Tensor) -> Tensor:
    """`(dy^T x)` at flat row-major positions.

    Args:
        x: [batch, columns].
        dy: [batch, rows].
        positions: int64 [count], ascending without repeats.

    Returns:
        [count], in the order of `positions`.

    Raises:
        ValueError: shapes do not fit, or positions out of range or not ascending.
    """
    rows, columns = _shape(x, dy)
    _check_positions(positions, rows * columns, "positions")
    crow = torch.searchsorted(positions, torch.arange(rows + 1, device=positions.device) * columns).to(
        torch.int32
    )
    return linear.weight_gradient(
        x, dy, prepare(crow, (positions % max(1, columns)).to(torch.int32), (rows, columns), "positions")
    )


def _shape(x: Tensor, dy: Tensor) -> tuple[int, int]:
    if x.dim() != 2 or dy.dim() != 2 or x.shape[0] != dy.shape[0]:
        raise ValueError(
            f"x must be [batch, columns] and dy [batch, rows], found {list(x.shape)} and {list(dy.shape)}."
        )
    return dy.shape[1], x.shape[1]


def _check_positions(positions: Tensor, size: int, name: str) -> None:
    if positions.dtype != torch.int64 or positions.dim() != 1:
        raise ValueError(f"{name} must be int64 [count], found {positions.dtype} {list(positions.shape)}.")
    if positions.numel() == 0:
        return
    if (
        int(positions[0]) < 0
        or int(positions[-1]) >= size
        or not bool((positions[1:] > positions[:-1]).all())
    ):
        raise ValueError(f"{name} must be ascending without repeats and in 0 ... {size - 1}.")
