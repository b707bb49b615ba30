"""Layouts that are what their kernel holds, and no more."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from openwork.layouts.layout import Layout


class Kernel(Protocol):
    """A weight in the order of one kernel."""

    @property
    def nbytes(self) -> int: ...

    def linear(self, x: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
        """``activation(x Wᵀ + bias)``, without gradients."""


class Held(Layout):
    """A layout that asks its kernel for everything."""

    def __init__(self, held: Kernel) -> None:
        self.held = held

    def linear(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        return self.held.linear(x, bias, activation)

    @property
    def nbytes(self) -> int:
        return self.held.nbytes
