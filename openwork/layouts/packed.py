"""A linear layer that was packed: for each size of batch, the layout that is fastest on this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.kernels.execution import is_native
from openwork.kernels.reference import activate
from openwork.layouts.csr import CSR
from openwork.layouts.dense import Dense
from openwork.layouts.layout import Layout
from openwork.layouts.linear import SparseLinear
from openwork.layouts.siblings import Share
from openwork.layouts.stream import Stream


class Dispatch:
    """The layouts of one weight ``[out, in]``, one for each size of batch that was measured.

    A call takes the layout measured at the nearest size (as a ratio). It does as little else as it can: for a single sample
    every microsecond shows.
    """

    def __init__(self, by_batch: Mapping[int, Layout], inputs: int) -> None:
        self.by_batch = dict(by_batch)
        self.inputs = inputs
        self._nearest: dict[int, Layout] = {}
        self._share = next((held for held in by_batch.values() if isinstance(held, Share)), None)

    def __call__(self, x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """``activation(x Wᵀ + bias)``, ``x [..., in]`` to ``[..., out]``."""
        if self._share is not None and (left := self._share.taken(x, bias)) is not None:
            return left
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "a packed layer is for inference and gives no gradients: run it under torch.no_grad(), or train the model "
                "and pack it afterwards"
            )
        shape = x.shape
        if not shape or shape[-1] != self.inputs:
            raise ValueError(f"this layer takes [..., {self.inputs}], not {list(shape)}")
        samples = shape[0] if len(shape) == 2 else shape[:-1].numel()
        layout = self._nearest.get(samples) or self.nearest(samples)
        if (len(shape) == 2 or layout.takes_any_axes) and x.is_contiguous():
            return layout.compute(x, bias, activation)
        y = layout.compute(x.reshape(samples, self.inputs).contiguous(), bias, activation)
        return y.view(*shape[:-1], y.shape[-1])

    def nearest(self, batch: int) -> Layout:
        """The layout for a size of batch."""
        size = max(batch, 1)
        best = min(self.by_batch, key=lambda measured: abs(math.log(measured / size)))
        self._nearest[batch] = self.by_batch[best]
        return self.by_batch[best]

    def __str__(self) -> str:
        return ", ".join(f"{batch}: {held.name}" for batch, held in self.by_batch.items())


def renewed(dispatch: Dispatch, topology: CSR, values: Tensor, bias: Tensor | None) -> Dispatch:
    """The same layouts for another state of the weight."""
    by_batch: dict[int, Layout] = {}
    for batch, held in dispatch.by_batch.items():
        if isinstance(held, Share):
            by_batch[batch] = held.renewed(topology, values, bias)
        else:
            cls = Stream if held.unsuited(topology, values, batch) else type(held)
            by_batch[batch] = cls.build(topology, values, batch)
    return Dispatch(by_batch, dispatch.inputs)


class PackedLinear(SparseLinear):
    """A :class:`~openwork.layouts.linear.SparseLinear` that computes inference in chosen layouts.

    Made by :func:`openwork.pack_`. Parameters and ``state_dict`` are those of the sparse layer, so saving and loading know
    nothing of it. The layouts hold copies of the weights as they were when packed, so the layer is for inference: with gradients
    enabled it refuses to run, rather than train weights that its layouts do not see.

    Attributes:
        dispatch: the layouts measured fastest, by size of batch.
        activation: what is applied to the output.
    """

    dispatch: Dispatch
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
        layer.dispatch, layer.activation = Dispatch(by_batch, layer.in_features), activation
        return layer.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """``activation(x Wᵀ + b)``, ``x [..., in]`` to ``[..., out]``."""
        return self.dispatch(x, self._parameters["bias"], self.activation)

    def takes_tiles(self, x: Tensor) -> bool:
        """As in the sparse layer: where the layout for this batch is a :class:`~openwork.layouts.stream.Stream`."""
        tileable = isinstance(self.dispatch.nearest(x.shape[0]), Stream) and is_native(x, self.bias)
        return tileable and not (x.requires_grad and torch.is_grad_enabled())

    def on_tiles(self, tiles: Tensor, activation: str = "none", batch: int | None = None) -> Tensor:
        """As in the sparse layer, with the activation that was packed with it."""
        stream = next(held for held in self.dispatch.by_batch.values() if isinstance(held, Stream))
        return activate(stream.on_tiles(tiles, self.bias, self.activation, batch), activation)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        state = self.topology, self.weight_values.detach(), fixed_bias(self)
        self.dispatch = renewed(self.dispatch, *state)

    def extra_repr(self) -> str:
        """Sizes, density and layouts."""
        return f"{super().extra_repr()}, layouts={{{self.dispatch}}}"


class DenseLinear(nn.Linear):
    """An ordinary ``nn.Linear`` that computes inference with the dense kernel that was measured fastest. Made by
    :func:`openwork.pack_` where no sparse layout wins.
    """

    dispatch: Dispatch
    activation: str

    @classmethod
    def pack(cls, linear: nn.Linear, by_batch: Mapping[int, Dense], activation: str) -> DenseLinear:
        """The layer that takes the place of ``linear``; it shares weight and bias with it."""
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.dispatch, layer.activation = Dispatch(by_batch, layer.in_features), activation
        return layer.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """``activation(x Wᵀ + b)``, ``x [..., in]`` to ``[..., out]``."""
        return self.dispatch(x, self._parameters["bias"], self.activation)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        held = {batch: type(old) for batch, old in self.dispatch.by_batch.items() if isinstance(old, Dense)}
        by_batch = {batch: cls.hold(self.weight.detach(), batch) for batch, cls in held.items()}
        self.dispatch = Dispatch(by_batch, self.in_features)


def fixed_bias(layer: nn.Linear) -> Tensor | None:
    """The bias of a layer without its history, if it has one."""
    bias: Tensor | None = layer.bias
    return None if bias is None else bias.detach()
