"""Constant fan-in without pointers: the weights of the units at work as two dense arrays.

What SRigL trains, written down for other engines and for other languages. (On this machine ``pack_`` runs such topologies in
slices of rows, which is the same form in another order.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openwork.layouts.csr import CSR
from openwork.layouts.linear import SparseLinear


@dataclass(frozen=True, eq=False)
class Condensed:
    """A weight ``[out, in]`` in which each unit has the same number of inputs ``F``, or none.

    Attributes:
        shape: ``(out, in)``.
        units: int64 ``[working]``, the units that have inputs, ascending.
        inputs: int32 ``[working, F]``, ascending in each row.
        values: ``[working, F]``.
    """

    shape: tuple[int, int]
    units: Tensor
    inputs: Tensor
    values: Tensor

    @classmethod
    def of(cls, layer: nn.Linear, mask: Tensor | None = None) -> Condensed:
        """The weights of a layer. Nothing is shared with it.

        Args:
            layer: a dense layer, or one that holds only its kept connections.
            mask: boolean ``[out, in]``, what is kept in a dense layer; None = wherever it is not zero.

        Raises:
            ValueError: units at work differ in their number of inputs.
        """
        if isinstance(layer, SparseLinear):
            return cls.from_values(layer.topology, layer.weight_values.detach())
        weight = layer.weight.detach()
        kept = weight != 0 if mask is None else mask
        return cls.from_values(CSR.from_mask(kept), weight[kept])

    @classmethod
    def from_values(cls, topology: CSR, values: Tensor) -> Condensed:
        """The same from ``values [kept]`` in row-major order."""
        fan_in = topology.fan_in
        units = fan_in.nonzero().flatten()
        sizes = fan_in[units].unique()
        if len(sizes) > 1:
            raise ValueError(
                f"units have between {int(sizes[0])} and {int(sizes[-1])} inputs, and a condensed weight has as many for each: "
                "train with SRigL or with pattern='fan-in'"
            )
        shape = (len(units), int(sizes[0]) if len(sizes) else 0)
        return cls(topology.shape, units, topology.col.view(shape).clone(), values.view(shape).clone())

    @property
    def nbytes(self) -> int:
        """Bytes of all three arrays."""
        return self.units.nbytes + self.inputs.nbytes + self.values.nbytes

    def dense(self) -> Tensor:
        """The ``[out, in]`` matrix, zeros included."""
        dense = self.values.new_zeros(self.shape)
        dense[self.units.unsqueeze(1), self.inputs.long()] = self.values
        return dense

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x Wᵀ + bias`` for ``x [..., in]``, in plain PyTorch: what the arrays mean, not how to be fast."""
        y = x.new_zeros(*x.shape[:-1], self.shape[0])
        y[..., self.units] = torch.einsum("...uf,uf->...u", x[..., self.inputs.long()], self.values)
        return y if bias is None else y + bias
