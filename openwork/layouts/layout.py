"""What a layout is: one way to hold a sparse weight for inference, with the kernel that goes with it.

A layout is made from a topology and its values, holds what its kernel needs and nothing else, and computes
``activation(x Wᵀ + b)``. :func:`openwork.pack_` builds every layout that suits a layer, times them against the best dense
kernels, and keeps the fastest. A new one is a page with a class; :func:`layouts` finds it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self, TypeVar

from torch import Tensor

from openwork.layouts.csr import CSR

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
"""Activations that every layout applies to its result."""


class Layout(ABC):
    """A frozen weight ``[out, in]`` and its kernel.

    Attributes:
        name: what tables call it.
    """

    name: ClassVar[str]

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


L = TypeVar("L", bound=type[Layout])

_SHELF: list[type[Layout]] = []


def layout(cls: L) -> L:
    """Put a layout on the shelf that :func:`openwork.pack_` chooses from."""
    _SHELF.append(cls)
    return cls


def layouts() -> tuple[type[Layout], ...]:
    """All layouts, sparse and dense."""
    import openwork.layouts.bitmasked
    import openwork.layouts.dense
    import openwork.layouts.nmg
    import openwork.layouts.row_blocks
    import openwork.layouts.shared_columns
    import openwork.layouts.slices
    import openwork.layouts.small_batch
    import openwork.layouts.stream  # noqa: F401

    return tuple(_SHELF)
