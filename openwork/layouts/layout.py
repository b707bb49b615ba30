"""What a layout is: one way to hold a sparse weight for inference, with the kernel that goes with it.

A layout is made from a topology and its values, holds what its kernel needs and nothing else, and computes
``activation(x Wᵀ + b)``. :func:`openwork.pack_` builds every layout that suits a layer, times them against the best dense
kernels, and keeps the fastest. A new one is a page with a class; :func:`layouts` finds it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from openwork.layouts.csr import CSR

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
"""Activations that every layout applies to its result."""

PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8)
"""What weights may be stored as, from fine to coarse."""


class Layout(ABC):
    """A frozen weight ``[out, in]`` and its kernel.

    Attributes:
        name: what tables call it.
        weight_dtype: what it stores weights as. One that is coarser than the weights themselves rounds them, and takes part in a
            contest only where that is allowed.
        input_dtypes: of the inputs that :meth:`linear` takes; :meth:`compute` takes others too.
        takes_any_axes: whether inputs may be ``[..., in]``: views of a small tensor take longer than its product.
    """

    name: ClassVar[str]
    weight_dtype: ClassVar[torch.dtype] = torch.float32
    input_dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    takes_any_axes: bool = False

    @classmethod
    @abstractmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        """Why this layout cannot hold these connections or serve batches of this size; None where it can."""

    @classmethod
    @abstractmethod
    def build(cls, topology: CSR, values: Tensor, batch: int) -> Self:
        """Hold the connections of ``topology`` with ``values [kept]``, for batches of about ``batch``."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """``activation(x Wᵀ + bias)`` for contiguous ``x [batch, in]``, without gradients."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes it holds."""

    @classmethod
    def unsuited_to(cls, values: Tensor) -> str | None:
        """Why its kernel cannot take weights of this dtype, or on this device; None where it can."""
        if values.dtype in (torch.float32, torch.bfloat16) and values.device.type == "cpu":
            return None
        return f"it computes float32 and bfloat16 on the CPU, not {values.dtype} on {values.device.type}"

    def compute(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """As :meth:`linear`, for inputs that its kernel does not know too: they go through float32, and the result has their
        precision.
        """
        if x.dtype in self.input_dtypes and (bias is None or bias.dtype is x.dtype):
            return self.linear(x, bias, activation)
        return self.linear(x.float(), None if bias is None else bias.float(), activation).to(x.dtype)


L = TypeVar("L", bound=type[Layout])

_SHELF: list[type[Layout]] = []


def layout(cls: L) -> L:
    """Put a layout on the shelf that :func:`openwork.pack_` chooses from."""
    _SHELF.append(cls)
    return cls


def layouts(coarsest: torch.dtype | None = None) -> tuple[type[Layout], ...]:
    """All layouts, sparse and dense; with ``coarsest`` those that store weights no coarser than that (see :data:`PRECISIONS`)."""
    import openwork.layouts.bitmasked
    import openwork.layouts.dense
    import openwork.layouts.nmg
    import openwork.layouts.pairs
    import openwork.layouts.row_blocks
    import openwork.layouts.shared_columns
    import openwork.layouts.slices
    import openwork.layouts.small_batch
    import openwork.layouts.squares
    import openwork.layouts.stream  # noqa: F401

    if coarsest is None:
        return tuple(_SHELF)
    limit = PRECISIONS.index(coarsest)
    return tuple(cls for cls in _SHELF if PRECISIONS.index(cls.weight_dtype) <= limit)
