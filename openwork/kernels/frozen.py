"""Sparse linear layers for inference only: the weights are woven into their stream once, not in every call.

The results are the bits of `linear.sparse_linear`; what is saved is the weaving, a few percent of a large
batch and more of a small one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import linear, native, reference
from openwork.kernels import tiles as tiles_of
from openwork.kernels.execution import is_traced
from openwork.kernels.index import Prepared
from openwork.kernels.products import run_linear

_library = torch.library.Library("openwork", "FRAGMENT")
_library.define(
    "frozen_linear(Tensor x, Tensor words, Tensor? bias, Tensor[] walk, SymInt outputs, str activation)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True, eq=False)
class Frozen:
    """A topology with weights that no longer change; made by `freeze`.

    Attributes:
        prepared: the topology.
        weights: the woven stream, int64; with OPENWORK_NATIVE=0 the values, float32 [kept].
    """

    prepared: Prepared
    weights: Tensor = field(repr=False)


def freeze(values: Tensor, prepared: Prepared) -> Frozen:
    """Weave `values` [kept] (float32, CPU) once. Later changes of `values` are not seen.

    Raises:
        TypeError: other dtypes or devices; those have no frozen form, use `linear.sparse_linear`.
    """
    linear.check_values(values, prepared)
    values = values.detach().contiguous()
    if values.dtype != torch.float32 or values.device.type != "cpu":
        raise TypeError(
            f"Only float32 weights on the CPU can be frozen, found {values.dtype} on {values.device}."
        )
    if not native.enabled():
        return Frozen(prepared, values.clone())
    col, runs, buckets, parts = prepared.walk
    words = torch.zeros(int(parts[-1, 2]), dtype=torch.int64)
    native.kernels().weave_stream(
        values.data_ptr(), words.data_ptr(), col.data_ptr(), col.numel(), runs.data_ptr(), buckets.data_ptr(),
        parts.data_ptr(), buckets.shape[0], buckets.shape[1],
    )  # fmt: skip
    return Frozen(prepared, words)


def frozen_linear(x: Tensor, frozen: Frozen, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """`activation(x W^T + bias)` with frozen W: as `linear.sparse_linear`, float32 on the CPU, without
    gradients.

    Args:
        x: [..., inputs].
        frozen: from `freeze`.
        bias: [outputs].
        activation: one of `linear.ACTIVATIONS`.
    """
    outputs, inputs = frozen.prepared.shape
    linear.check_linear(x, inputs, outputs, bias, activation)
    if x.dtype is not torch.float32 or not x.is_cpu:
        raise TypeError(f"Frozen weights multiply float32 inputs on the CPU, found {x.dtype} on {x.device}.")
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        raise RuntimeError(
            "Frozen weights have no gradients: call under torch.no_grad(), or train with linear.sparse_linear"
        )
    if not native.enabled():
        prepared = frozen.prepared
        return reference.sparse_linear(
            x, frozen.weights, prepared.positions, prepared.shape, bias, activation
        )
    rows = x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), inputs)
    compute = torch.ops.openwork.frozen_linear if is_traced(rows, bias) else _frozen_linear
    y: Tensor = compute(rows, frozen.weights, bias, frozen.prepared.walk, outputs, activation)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], outputs)


def frozen_linear_tiles(
    tiles: Tensor,
    frozen: Frozen,
    bias: Tensor | None = None,
    activation: str = "none",
    batch: int | None = None,
) -> Tensor:
    """The same in a chain of layers, without gradients: from tiles [count, inputs, 64] to tiles [count, outputs, 64], or to
    [batch, outputs] if `batch` says how many samples they hold (`tiles.sparse_linear_tiles`).
    """
    outputs, inputs = frozen.prepared.shape
    tiles_of.check_tiles(tiles, batch)
    linear.check_linear(tiles[:0, :, 0], inputs, outputs, bias, activation)
    if not native.enabled():
        y = frozen_linear(tiles.transpose(1, 2), frozen, bias, activation).transpose(1, 2).contiguous()
        return y if batch is None else reference.unpack_tiles(y, batch)
    walk = frozen.prepared.walk
    if is_traced(tiles, bias):
        y = torch.ops.openwork.frozen_linear(tiles, frozen.weights, bias, walk, outputs, activation)
        return y if batch is None else tiles_of.unpack_tiles(y, batch)
    return run_linear(
        tiles, walk, outputs, words=frozen.weights, bias=bias, activation=activation, batch=batch
    )


def _frozen_linear(
    x: Tensor, words: Tensor, bias: Tensor | None, walk: list[Tensor], outputs: int, activation: str
) -> Tensor:
    return run_linear(x, walk, outputs, words=words, bias=bias, activation=activation)


_library.impl("frozen_linear", _frozen_linear, "CPU")
torch.library.register_fake(
    "openwork::frozen_linear",
    lambda x, words, bias, walk, outputs, activation: x.new_empty(x.shape[0], outputs, *x.shape[2:]),
    lib=_library,
)
