"""Packing linear layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from openwork.layouts.csr import CSR
from openwork.layouts.dense import Dense, TorchDense
from openwork.layouts.layout import PRECISIONS, Layout, layouts
from openwork.layouts.linear import SparseLinear
from openwork.layouts.packed import DenseLinear, Dispatch, PackedLinear
from openwork.layouts.packed_conv1d import PackedConv1D, connections_of_conv1d, is_conv1d
from openwork.pack.choice import Trial, density_step
from openwork.timing import Latency, latencies


class LinearTrial(Trial[Layout]):
    """A weight ``[out, in]`` with ``batch`` rows of inputs, and the activation behind it: most layouts compute both in one pass.

    Layouts take part that hold weights at least as finely as the coarser of ``weight_dtype`` and the dtype they have.
    """

    def __init__(
        self,
        topology: CSR,
        values: Tensor,
        batch: int,
        weight_dtype: torch.dtype = torch.float32,
        activation: str = "none",
    ) -> None:
        self.activation = activation
        self.topology, self.shape, self.batch, self.values = topology, topology.shape, batch, values
        coarsest = max(values.dtype, weight_dtype, key=PRECISIONS.index)
        suited = [cls for cls in layouts(coarsest) if cls.unsuited(topology, values, batch) is None]
        self.suited = {cls.name: cls for cls in suited}
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, topology.shape[1], generator=generator)
        self.x = x.to(values.device, values.dtype)

    def forms(self) -> dict[str, bool]:
        return {name: issubclass(cls, Dense) for name, cls in self.suited.items()}

    def key(self) -> str:
        """Densities in steps; how rows share connections shows in the layouts that suit."""
        parts = [
            *self.shape,
            density_step(self.topology),
            self.batch,
            str(self.values.dtype),
            self.activation,
            list(self.suited),
        ]
        return json.dumps(parts, separators=(",", ":"))

    def hold(self, form: str) -> Layout:
        return self.suited[form].build(self.topology, self.values, self.batch)

    def call(self, held: Layout) -> Callable[[], object]:
        x, activation = self.x, self.activation
        if type(held) is TorchDense:  # that is what a layer does that is not packed: without a dispatch
            return lambda: held.linear(x, None, activation)
        dispatch = Dispatch({self.batch: held}, self.shape[1])
        return lambda: dispatch(x, None, activation)


def contest(
    topology: CSR, values: Tensor, batch: int, seconds: float, weight_dtype: torch.dtype = torch.float32
) -> dict[str, Latency]:
    """Time every layout that suits a weight, dense ones included, on random inputs; none drops out early.

    Args:
        topology: the connections, ``[out, in]``.
        values: ``[kept]``.
        batch: samples in a call.
        seconds: to spend on all of them together, about.
        weight_dtype: the coarsest that weights may be rounded to.

    Returns:
        Name of the layout -> its latency.
    """
    trial = LinearTrial(topology, values, batch, weight_dtype)
    calls = {form: trial.call(trial.made(form)) for form in trial.forms()}
    return latencies(calls, seconds=seconds, rounds=9)


def connections_of(layer: nn.Module) -> tuple[CSR, Tensor]:
    """What a linear layer keeps; of a dense one, whatever is not zero."""
    if is_conv1d(layer):
        return connections_of_conv1d(layer)[:2]
    assert isinstance(layer, nn.Linear)
    if isinstance(layer, SparseLinear):
        return layer.topology, layer.weight_values.detach()
    weight = layer.weight.detach()
    mask = weight != 0
    return CSR.from_mask(mask), weight[mask]


@dataclass
class Chosen:
    """A linear layer and the layouts chosen for it.

    Attributes:
        layer: what was there.
        activation: what is applied to its outputs.
        weight_dtype: the coarsest that its weights may be rounded to.
        topology: its connections.
        values: its kept weights.
        by_batch: the layout for each size of batch.
    """

    layer: nn.Module
    activation: str
    weight_dtype: torch.dtype
    topology: CSR
    values: Tensor
    by_batch: dict[int, Layout] = field(default_factory=dict)

    @property
    def bias(self) -> Tensor | None:
        """Its bias without history."""
        bias = self.layer._parameters["bias"]
        return None if bias is None else bias.detach()

    def packed(self) -> nn.Module:
        """The layer that takes its place; itself where nothing is faster."""
        layer = self.layer
        if is_conv1d(layer):
            plain = all(type(held) is TorchDense for held in self.by_batch.values())
            return layer if plain else PackedConv1D.pack(layer, self.by_batch)
        assert isinstance(layer, nn.Linear)
        if any(not isinstance(held, Dense) for held in self.by_batch.values()):
            return PackedLinear.pack(self.topology, self.values, self.bias, self.by_batch, self.activation)
        dense = {batch: held for batch, held in self.by_batch.items() if isinstance(held, Dense)}
        if isinstance(layer, SparseLinear):
            return DenseLinear.pack(layer.to_linear(), dense, self.activation)
        if all(type(held) is TorchDense for held in dense.values()):
            return layer
        return DenseLinear.pack(layer, dense, self.activation)
