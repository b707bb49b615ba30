"""The gradient of the dense weight, `G = dY^T X`, at some positions. G is never stored.

Where it is largest is found by walking it in tiles of rows, see `openwork.kernels.ranking`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.kernels import linear
from openwork.kernels.index import prepare


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
