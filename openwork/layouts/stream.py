"""Unstructured rows as one stream of (place, value) words, in the order the kernel reads them."""

from __future__ import annotations

from typing import ClassVar, Self

from torch import Tensor

from openwork.kernels.frozen import Frozen, freeze, frozen_linear, frozen_linear_tiles
from openwork.kernels.linear import prepare
from openwork.layouts.csr import CSR
from openwork.layouts.layout import Layout, layout


@layout
class Stream(Layout):
    """CSR cut into blocks of columns that fit the first-level cache, rows sorted by length in each block.

    Suits any topology and any batch; made for batches of 16 and more.
    """

    name: ClassVar[str] = "csr"

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen

    @classmethod
    def unsuited(cls, topology: CSR, values: Tensor, batch: int) -> str | None:
        if wrong := cls.unsuited_to(values):
            return wrong
        return None

    @classmethod
    def build(cls, topology: CSR, values: Tensor, batch: int) -> Self:
        return cls(freeze(values.float(), prepare(topology.crow, topology.col, topology.shape)))

    def linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return frozen_linear(x, self.frozen, bias, activation)

    def on_tiles(self, tiles: Tensor, bias: Tensor | None, activation: str, batch: int | None) -> Tensor:
        """As :meth:`linear`, in a chain of layers: :func:`openwork.kernels.frozen.frozen_linear_tiles`."""
        return frozen_linear_tiles(tiles, self.frozen, bias, activation, batch)

    @property
    def nbytes(self) -> int:
        tensors = [self.frozen.weights, *self.frozen.prepared.walk]
        return sum(t.numel() * t.element_size() for t in tensors)
