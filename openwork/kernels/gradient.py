"""The gradient of the dense weight, `G = dY^T X`, where it is wanted: at some positions, or where it is
largest. G is never stored.

Growing connections by gradient (RigL and relatives) needs the largest entries of G outside the topology. They
are found by walking G in tiles of rows with one dense product a tile, keeping the best k seen so far: memory
O(tile + k), not rows x columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.kernels import linear
from openwork.kernels.index import prepare

_TILE_ENTRIES = 2**20


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


def top_gradient(x: Tensor, dy: Tensor, exclude_positions: Tensor, k: int) -> Tensor:
    """The k positions outside `exclude_positions` where `|dy^T x|` is largest; equal ones go to the lower
    position.

    Args:
        x: [batch, columns].
        dy: [batch, rows].
        exclude_positions: int64, flat row-major, ascending without repeats: usually the present topology.
        k: how many.

    Returns:
        int64 [k], ascending.

    Raises:
        ValueError: shapes do not fit, fewer than k positions are free, or the gradient has NaN.
    """
    rows, columns = _shape(x, dy)
    _check_positions(exclude_positions, rows * columns, "exclude_positions")
    free = rows * columns - exclude_positions.numel()
    if not 0 <= k <= free:
        raise ValueError(
            f"k = {k} positions were asked for, but {free} of {rows} x {columns} are free (0 <= k <= {free})."
        )
    best = torch.empty(
        0, dtype=x.dtype, device=x.device
    )  # scores of the best so far, in the order of their positions
    where = torch.empty(0, dtype=torch.int64, device=x.device)
    if k == 0:
        return where
    x, dy = x.detach(), dy.detach()
    tile = max(1, _TILE_ENTRIES // max(1, columns))
    for begin in range(0, rows, tile):
        end = min(rows, begin + tile)
        score = (dy[:, begin:end].T @ x).abs_().view(-1)
        if bool(score.isnan().any()):
            raise ValueError(
                "The gradient has NaN, so its largest entries are not defined. Check the loss and the inputs."
            )
        low, high = torch.searchsorted(
            exclude_positions, exclude_positions.new_tensor([begin * columns, end * columns])
        ).tolist()
        score[exclude_positions[low:high] - begin * columns] = -1
        # Later positions lose ties, so with k found only larger scores count.
        floor = best.min() if best.numel() == k else score.new_tensor(-0.5)
        found = torch.nonzero(score > floor).view(-1)
        best, where = _largest(
            torch.cat([best, score[found]]), torch.cat([where, found + begin * columns]), k
        )
    return where


def _largest(score: Tensor, position: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores, the first ones among equals, in their order."""
    if score.numel() <= k:
        return score, position
    threshold = torch.topk(score, k).values[-1]
    keep = score > threshold
    ties = torch.nonzero(score == threshold).view(-1)
    keep[ties[: k - int(keep.sum())]] = True
    return score[keep], position[keep]


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
