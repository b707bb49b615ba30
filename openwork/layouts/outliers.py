"""The few weights of a layer that are not rounded, beside the codes of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.layouts.csr import CSR

OUTLIERS = ("outlier_values", "outlier_crow", "outlier_col")
"""Their names in a ``state_dict``."""


@dataclass(frozen=True)
class Outliers:
    """The weights of a layer that are not rounded: a topology, and values ``[kept]`` that sixteen bits hold exactly."""

    topology: CSR
    values: Tensor

    def dense(self) -> Tensor:
        """``[out, in]``, zero elsewhere."""
        return self.topology.dense(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of values and columns of 16 bits each, and of row pointers of 32."""
        return 4 * self.topology.kept + 4 * (self.topology.shape[0] + 1)

    def arrays(self) -> dict[str, Tensor]:
        """As a layer holds them: values float16, columns uint16.

        Raises:
            ValueError: the layer has more inputs than 16 bits can name.
        """
        if self.topology.shape[1] > 2**16:
            raise ValueError(f"outliers name their input in 16 bits; this layer has {self.topology.shape[1]}")
        held = self.values.half(), self.topology.crow, self.topology.col.to(torch.uint16)
        return dict(zip(OUTLIERS, held, strict=True))


def check_outliers(values: Tensor, crow: Tensor, col: Tensor, shape: tuple[int, int], prefix: str) -> None:
    """Raise ValueError unless the arrays of a state are outliers of a weight of ``shape``."""
    if any(array.is_meta for array in (values, crow, col)):
        raise ValueError(f"{prefix}outlier_values: tensors on the meta device have no contents")
    if values.shape != col.shape or col.numel() > shape[0] * shape[1]:
        raise ValueError(f"{prefix}outlier_values: {values.numel()} values for {col.numel()} places")
    CSR(shape, crow, col.int()).validate(f"{prefix}outliers")
