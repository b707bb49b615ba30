"""A linear layer that was packed: for each size of batch, the layout that is fastest on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.layouts.csr import CSR
from openwork.layouts.dense import Dense, activated
from openwork.layouts.layout import Layout
from openwork.layouts.linear import SparseLinear
from openwork.layouts.stream import Stream


class PackedLinear(SparseLinear):
    """A :class:`~openwork.layouts.linear.SparseLinear` that computes inference in chosen layouts.

    Made by :func:`openwork.pack_`. Parameters and ``state_dict`` are those of the sparse layer, so saving and loading know
    nothing of it. The layouts hold copies of the weights as they were when packed, so the layer is for inference: with gradients
    enabled it refuses to run, rather than train weights that its layouts do not see.

    Attributes:
        by_batch: size of batch -> the layout measured fastest for it.
        activation: what is applied to the output.
    """

    by_batch: Mapping[int, Layout]
    activation: str

    @classmethod
    def pack(
        cls,
        topology: CSR,
        values: Tensor,
        bias: Tensor | None,
        by_batch: Mapping[int, Layout],
        activation: str,
    ) -> PackedLinear:
        """A packed layer from what was measured; ``by_batch`` must not be empty."""
        layer = cls.from_values(topology, values, bias)
        layer.by_batch, layer.activation = dict(by_batch), activation
        return layer.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """``activation(x Wᵀ + b)``, ``x [..., in]`` to ``[..., out]``."""
        return _packed_forward(self, x, self.by_batch, self.activation)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        topology, values = self.topology, self.weight_values.detach()
        held = {batch: type(old) for batch, old in self.by_batch.items()}
        self.by_batch = {
            batch: (Stream if cls.unsuited(topology, values, batch) else cls).build(topology, values, batch)
            for batch, cls in held.items()
        }

    def extra_repr(self) -> str:
        """Sizes, density and layouts."""
        chosen = ", ".join(f"{batch}: {held.name}" for batch, held in self.by_batch.items())
        return f"{super().extra_repr()}, layouts={{{chosen}}}"


class DenseLinear(nn.Linear):
    """An ordinary ``nn.Linear`` that computes inference with the dense kernel that was measured fastest. Made by
    :func:`openwork.pack_` where no sparse layout wins.
    """

    by_batch: Mapping[int, Dense]
    activation: str

    @classmethod
    def pack(cls, linear: nn.Linear, by_batch: Mapping[int, Dense], activation: str) -> DenseLinear:
        """The layer that takes the place of ``linear``; it shares weight and bias with it."""
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.by_batch, layer.activation = dict(by_batch), activation
        return layer.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """``activation(x Wᵀ + b)``, ``x [..., in]`` to ``[..., out]``."""
        return _packed_forward(self, x, self.by_batch, self.activation)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.by_batch = {
            batch: type(old).hold(self.weight.detach(), batch) for batch, old in self.by_batch.items()
        }


def _packed_forward(layer: nn.Linear, x: Tensor, by_batch: Mapping[int, Layout], activation: str) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError(
            "a packed layer is for inference and gives no gradients: run it under torch.no_grad(), or train the model and "
            "pack it afterwards"
        )
    if x.shape[-1:] != (layer.in_features,):
        raise ValueError(f"this layer takes [..., {layer.in_features}], not {list(x.shape)}")
    rows = x.reshape(-1, layer.in_features).contiguous()
    bias = fixed_bias(layer)
    if rows.shape[0] == 0:
        y = activated(
            nn.functional.linear(rows, rows.new_zeros(layer.out_features, layer.in_features), bias),
            activation,
        )
    else:
        with torch.no_grad():
            y = nearest(by_batch, rows.shape[0]).linear(rows, bias, activation)
    return y.view(*x.shape[:-1], layer.out_features)


def fixed_bias(layer: nn.Linear) -> Tensor | None:
    """The bias of a layer without its history, if it has one."""
    bias: Tensor | None = layer.bias
    return None if bias is None else bias.detach()


def nearest(by_batch: Mapping[int, Layout], batch: int) -> Layout:
    """The layout measured at the size of batch nearest to ``batch``, as a ratio."""
    return by_batch[min(by_batch, key=lambda measured: abs(math.log(measured / batch)))]
