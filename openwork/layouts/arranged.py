"""Layouts for few samples: a weight in the order of one kernel of :mod:`openwork.kernels.inference`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor

from openwork.kernels.inference import Arrangement
from openwork.layouts.csr import CSR
from openwork.layouts.held import Held


class Arranged(Held):
    """A layout that holds one arrangement, made by :meth:`arrange`."""

    takes_any_axes: bool = True

    @staticmethod
    @abstractmethod
    def arrange(
        values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int], dtype: torch.dtype
    ) -> Arrangement:
        """Lay out float32 ``values [kept]`` at a CSR topology, stored as ``dtype``."""

    @classmethod
    def build(cls, topology: CSR, values: Tensor, batch: int) -> Self:
        arguments = topology.crow, topology.col, topology.shape, cls.weight_dtype
        return cls(cls.arrange(values.float(), *arguments))
