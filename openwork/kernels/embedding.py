"""Rows of a sparse table, `y[t] = W[indices[t]]`, and the gradient of its kept entries.

Work and memory follow what is looked up: the kept entries of each row asked for, plus the dense rows that come out. Two
operators are enough, because they are closed under differentiation: the gradient of a lookup is `embedding_gradient`, whose own
gradient is a lookup again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("openwork", "FRAGMENT")
_library.define(
    "sparse_embedding(Tensor indices, Tensor values, Tensor crow, Tensor col, SymInt columns) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "embedding_gradient(Tensor indices, Tensor dy, Tensor crow, Tensor col) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def sparse_embedding(indices: Tensor, values: Tensor, crow: Tensor, col: Tensor, columns: int) -> Tensor:
    """Look rows up. Differentiable in `values`, twice.

    Args:
        indices: int32 or int64 [count], each a row.
        values: [kept], in CSR order.
        crow: int32 [rows + 1], a valid topology, as is `col`.
        col: int32 [kept].
        columns: size of a row.

    Returns:
        [count, columns].

    Raises:
        IndexError: an index is no row.
    """
    y: Tensor = torch.ops.openwork.sparse_embedding(indices, values, crow, col, columns)
    return y


def embedding_gradient(indices: Tensor, dy: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """The gradient of the kept entries, [kept]: the sum of `dy[t]`, [count, columns], over the `t` that looked each of them up,
    in order of `t`.
    """
    gradient: Tensor = torch.ops.openwork.embedding_gradient(indices, dy, crow, col)
    return gradient


def _looked_up(indices: Tensor, crow: Tensor, col: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Entries that the lookups meet, one after the other, and where each stands in the flat [count, columns] result."""
    start = crow.index_select(0, indices).long()
    lengths = crow.index_select(0, indices + 1) - start
    behind = lengths.cumsum(0)
    count = int(behind[-1]) if len(behind) else 0
    lookup = torch.arange(len(indices), device=indices.device).repeat_interleave(lengths, output_size=count)
    entries = torch.arange(count, device=indices.device) + (start - behind + lengths)[lookup]
    return entries, lookup * columns + col[entries]


def _forward(indices: Tensor, values: Tensor, crow: Tensor, col: Tensor, columns: int) -> Tensor:
    entries, places = _looked_up(indices, crow, col, columns)
    y = values.new_zeros(len(indices) * columns)
    return y.index_copy_(0, places, values[entries]).view(len(indices), columns)


def _backward(indices: Tensor, dy: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    entries, places = _looked_up(indices, crow, col, dy.shape[1])
    return dy.new_zeros(col.numel()).index_add_(0, entries, dy.reshape(-1)[places])


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, _, crow, col, _ = inputs
    ctx.save_for_backward(indices, crow, col)


def _differentiate_forward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    indices, crow, col = ctx.saved_tensors
    return None, embedding_gradient(indices, dy, crow, col), None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, dy, crow, col = inputs
    ctx.save_for_backward(indices, crow, col)
    ctx.columns = dy.shape[1]


def _differentiate_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    indices, crow, col = ctx.saved_tensors
    return None, sparse_embedding(indices, upstream, crow, col, ctx.columns), None, None


def _forward_fake(indices: Tensor, values: Tensor, crow: Tensor, col: Tensor, columns: int) -> Tensor:
    return values.new_empty(indices.shape[0], columns)


def _backward_fake(indices: Tensor, dy: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    return dy.new_empty(col.shape[0])


for _name, _kernel, _fake, _save, _differentiate in (
    ("sparse_embedding", _forward, _forward_fake, _save_forward, _differentiate_forward),
    ("embedding_gradient", _backward, _backward_fake, _save_backward, _differentiate_backward),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _kernel, _device)
    torch.library.register_fake(f"openwork::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"openwork::{_name}", _differentiate, setup_context=_save, lib=_library)
