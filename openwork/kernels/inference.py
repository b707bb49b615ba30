"""What the kernels for inference at small batches have in common: their arguments, their columns, their twin.

These kernels keep weights in an order of their own, made once from a CSR matrix and never trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.kernels import linear, reference
from openwork.kernels.topology import validate

NONZERO_WORK = 16
"""Multiply-adds of a large batch that take about as long as one nonzero of a small one (`native.threads`)."""

WEIGHT_DTYPES = (torch.float32, torch.bfloat16)
"""What weights may be stored as. Inputs, products and sums are float32 either way."""


def check_weights(
    values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """Raise unless (crow, col) is a CSR topology of `shape`, `values` its float32 weights on the CPU, and
    `dtype` one to store them as.
    """
    validate(crow, col, shape, "weight")
    if values.dim() != 1 or values.shape[0] != col.numel():
        raise ValueError(
            f"values must be [{col.numel()}], one for each kept weight, found {list(values.shape)}."
        )
    if values.dtype != torch.float32 or values.device.type != "cpu" or crow.device.type != "cpu":
        raise TypeError(
            "Kernels for small batches hold float32 weights on the CPU, "
            f"found {values.dtype} on {values.device}."
        )
    if dtype not in WEIGHT_DTYPES:
        raise TypeError(f"Weights can be stored as float32 or bfloat16, not {dtype}.")


def check_inputs(x: Tensor, shape: tuple[int, int], bias: Tensor | None, activation: str) -> Tensor:
    """`x` [..., inputs] as rows; raise unless it fits and is float32 on the CPU without gradients."""
    outputs, inputs = shape
    linear.check_linear(x, inputs, outputs, bias, activation)
    for tensor in (x,) if bias is None else (x, bias):
        if tensor.dtype is not torch.float32 or not tensor.is_cpu:
            name = "x" if tensor is x else "bias"
            raise TypeError(f"{name} must be float32 on the CPU, found {tensor.dtype} on {tensor.device}.")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "Kernels for small batches have no gradients: call under torch.no_grad(), or train with "
                "linear.sparse_linear."
            )
    return x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), inputs)


def column_dtype(inputs: int) -> torch.dtype:
    """16 bits where they can name every column and the zero behind the last one, otherwise 32."""
    return torch.uint16 if inputs <= torch.iinfo(torch.uint16).max else torch.int32


def gathered_linear(
    x: Tensor,
    columns: Tensor,
    values: Tensor,
    rows: Tensor,
    bias: Tensor | None,
    outputs: int,
    activation: str,
) -> Tensor:
    """The plain twin: every entry is a column, a value and a row, in any order.

    Args:
        x: [batch, inputs].
        columns: of each entry; `inputs` stands for an input that is zero.
        values: of each entry.
        rows: int64, of each entry; `outputs` stands for an output that nobody reads.
        bias: [outputs].
        outputs: number of rows.
        activation: one of `linear.ACTIVATIONS`.
    """
    padded = torch.cat([x, x.new_zeros(x.shape[0], 1)], 1)
    products = padded[:, columns.flatten().long()] * values.flatten().to(x.dtype)
    y = x.new_zeros(x.shape[0], outputs + 1).index_add(1, rows.flatten(), products)[:, :outputs]
    return reference.activate(y if bias is None else y + bias, activation)
