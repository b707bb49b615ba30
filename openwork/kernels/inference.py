"""What the kernels for inference at small batches have in common: how they are called, their columns, their twin.

These kernels keep weights in an order of their own, made once from a CSR matrix and never trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from openwork.kernels import linear, native, reference
from openwork.kernels.execution import is_traced
from openwork.kernels.topology import validate

NONZERO_WORK = 16
"""Multiply-adds of a large batch that take about as long as one nonzero of a small one (`native.threads`)."""

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.int8)
"""What weights may be stored as (csrc/weight.h has the same order). Inputs, products and sums are float32 whatever they are;
int8 has a scale for each row.
"""

LARGEST_INT8 = 127
"""Of an int8 weight, on both sides of zero."""


class Arrangement(ABC):
    """A frozen sparse matrix in the order of one kernel: base of the dataclasses that hold its tensors.

    A kernel is a page with such a dataclass, decorated with :func:`operator`: how the matrix is laid out, what the native kernel
    is told of it, and the plain twin. How it is called is said here once.

    Attributes:
        operator: name of the torch operator and of the native kernel.
        shape: (outputs, inputs). All other fields are tensors, or None.
    """

    operator: ClassVar[str]
    shape: tuple[int, int]
    _names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def arguments(self) -> tuple[int, ...]:
        """What the native kernel takes between sizes and bias: addresses, counts, types (csrc/kernels/)."""

    @abstractmethod
    def work(self, samples: int) -> int:
        """Multiply-adds of a large batch that take about as long (`native.threads`)."""

    @abstractmethod
    def twin(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """The same for x [samples, inputs] in plain PyTorch."""

    def linear(self, x: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
        """`activation(x W^T + bias)`, float32 on the CPU, without gradients; the same bits for every number of threads.

        Args:
            x: [..., inputs]; any strides, any number of leading dimensions.
            bias: [outputs].
            activation: one of `linear.ACTIVATIONS`.

        Returns:
            [..., outputs], contiguous.

        Raises:
            TypeError: another dtype or device.
            ValueError: shapes do not fit, or an unknown activation.
            RuntimeError: a gradient would be needed.
        """
        check_inputs(x, self.shape, bias, activation)
        return self.of_checked(x, bias, activation)

    def of_checked(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """As :meth:`linear`, for arguments that the caller knows to fit: for a single sample every microsecond shows."""
        if not is_traced(x, bias):
            return self._run(x, bias, activation)
        rows = x.reshape(x.shape[:-1].numel(), self.shape[1])
        call = getattr(torch.ops.openwork, self.operator)
        y: Tensor = call(rows, self._tensors(), bias, self.shape[0], activation)
        return y.view(*x.shape[:-1], self.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return sum(held.nbytes for held in self._tensors() if held is not None)

    def _tensors(self) -> list[Tensor | None]:
        return [getattr(self, name) for name in self._names]

    def _run(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        outputs, inputs = self.shape
        leading = x.shape[:-1]
        samples = leading.numel()
        if not native.enabled():
            return self.twin(x.reshape(samples, inputs), bias, activation).view(*leading, outputs)
        x, bias = x.contiguous(), None if bias is None else bias.contiguous()
        y = x.new_empty(*leading, outputs)
        getattr(native.kernels(), self.operator)(
            x.data_ptr(), y.data_ptr(), samples, inputs, outputs, *self.arguments(),
            0 if bias is None else bias.data_ptr(), linear.ACTIVATIONS.index(activation),
            native.threads(self.work(samples)),
        )  # fmt: skip
        return y


A = TypeVar("A", bound=type[Arrangement])

_library = torch.library.Library("openwork", "FRAGMENT")


def operator(cls: A) -> A:
    """Register the torch operator of an arrangement: what compilers, exports and modes see of a call."""

    def compute(
        x: Tensor, held: list[Tensor | None], bias: Tensor | None, outputs: int, activation: str
    ) -> Tensor:
        return cls((outputs, x.shape[1]), *held)._run(x, bias, activation)  # type: ignore[call-arg]

    def shaped(
        x: Tensor, held: list[Tensor | None], bias: Tensor | None, outputs: int, activation: str
    ) -> Tensor:
        return x.new_empty(x.shape[0], outputs)

    cls._names = tuple(field.name for field in fields(cls) if field.name != "shape")  # type: ignore[arg-type]
    schema = "(Tensor x, Tensor?[] held, Tensor? bias, SymInt outputs, str activation) -> Tensor"
    _library.define(f"{cls.operator}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(cls.operator, compute, "CPU")
    torch.library.register_fake(f"openwork::{cls.operator}", shaped, lib=_library)
    return cls


def address(tensor: Tensor | None) -> int:
    """Of the first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


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
        raise TypeError(f"Weights can be stored as float32, bfloat16 or int8, not {dtype}.")


def rounded(values: Tensor, crow: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """`values` [kept] in `dtype`, in their order, and the scales of the rows [rows] where the dtype has such.

    int8 is rounded to the nearest, the largest weight of a row to 127 or -127: `scale * number` is at most half a scale from
    the weight, and zero stays zero.

    Raises:
        ValueError: a weight is not finite, and int8 has no number for it.
    """
    values = values.detach()
    if dtype != torch.int8:
        return values.to(dtype), None
    if not bool(values.isfinite().all()):
        raise ValueError("int8 has no number for NaN and infinity, and there are such weights.")
    rows, row = crow.numel() - 1, torch.repeat_interleave(crow.diff().long())
    largest = values.new_zeros(rows).scatter_reduce_(0, row, values.abs(), "amax")
    scales = (largest / LARGEST_INT8).clamp(min=torch.finfo(torch.float32).tiny)
    numbers = (values / scales[row]).round().clamp(-LARGEST_INT8, LARGEST_INT8)
    return numbers.to(torch.int8), scales


def check_inputs(x: Tensor, shape: tuple[int, int], bias: Tensor | None, activation: str) -> None:
    """Raise unless `x` [..., inputs] fits and is float32 on the CPU without gradients."""
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
    scales: Tensor | None = None,
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
        scales: [outputs], what the sum of each row is multiplied by.
    """
    padded = torch.cat([x, x.new_zeros(x.shape[0], 1)], 1)
    products = padded[:, columns.flatten().long()] * values.flatten().to(x.dtype)
    y = x.new_zeros(x.shape[0], outputs + 1).index_add(1, rows.flatten(), products)[:, :outputs]
    y = y if scales is None else y * scales
    return reference.activate(y if bias is None else y + bias, activation)
