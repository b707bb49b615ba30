"""What the kernels of a layer derive from its indices, made anew when these change, whoever changed them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from openwork.layouts.csr import CSR

P = TypeVar("P")
"""What the kernels of a layer derive from its indices."""


class PreparedLayer(nn.Module, Generic[P]):
    """Base of layers whose topology is in two buffers, from which kernels derive more.

    Attributes:
        topology_version: counts changes of topology; what is derived from the indices is valid for one
            version.
    """

    weight_crow: Tensor
    weight_col: Tensor
    topology_version: int

    @abstractmethod
    def _prepare_kernels(self, crow: Tensor, col: Tensor) -> P:
        """What the kernels need, proven to be in range."""

    def _index(self, topology: CSR) -> None:
        """Make the buffers: copies of the indices of ``topology``."""
        self.topology_version = 0
        self._prepared: P | None = None
        self._known: tuple[Tensor, Tensor] | None = None
        self.register_buffer("weight_crow", topology.crow.clone())
        self.register_buffer("weight_col", topology.col.clone())

    @property
    def prepared(self) -> P:
        """What the kernels derive from the indices, proven to be in range on the way.

        It is made at once when the topology changes, so that ``torch.compile`` never traces the making.
        """
        if self._prepared is None or not (torch.compiler.is_compiling() or self._is_current()):
            self._prepare()
        assert self._prepared is not None
        return self._prepared

    def _prepare(self) -> None:
        if not self.weight_col.is_meta:
            self._known = self._prepared = None  # their memory serves what takes their place
            self._known = self.weight_crow.clone(), self.weight_col.clone()
            self._prepared = self._prepare_kernels(*self._known)
            self._versions = _versions(self.weight_crow, self.weight_col)

    def _is_current(self) -> bool:
        """Whether the buffers still say what was prepared.

        Code that knows no topologies may write to them: averaging of models, synchronisation of buffers.
        Contents are compared only after such a write.
        """
        versions = _versions(self.weight_crow, self.weight_col)
        if versions == self._versions:
            return True
        self._versions = versions
        assert self._known is not None
        if torch.equal(self.weight_crow, self._known[0]) and torch.equal(self.weight_col, self._known[1]):
            return True
        self.topology_version += 1
        return False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.weight_col
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight_col is not before:  # moved to another device, where nothing is prepared yet
            self._prepared = None
            if not before.is_meta:  # what comes from there has no contents before it is loaded
                self._prepare()
        return self


def _versions(*buffers: Tensor) -> list[int]:
    """How often each was written to; tensors made for inference do not count."""
    return [0 if buffer.is_inference() else buffer._version for buffer in buffers]
