"""What a model costs: bytes at rest, bytes in training, and time.

Bytes are counted tensor by tensor and times are taken; nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.layouts.layer import SparseLayer
from openwork.sparsifier import Sparsifier
from openwork.timing import Latency, latencies


@dataclass(frozen=True)
class TrainingState:
    """Bytes that live from step to step, or through one, while a model trains. Activations are not among
    them.

    Attributes:
        values: parameters and buffers of numbers.
        gradients: of the parameters that have one.
        optimizer: its moments and counters.
        indices: where values are: masks, or the indices of layers that hold only their kept connections, with
            what the kernels derive from them.
    """

    values: int
    gradients: int
    optimizer: int
    indices: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.values + self.gradients + self.optimizer + self.indices


def training_state(
    model: nn.Module, optimizer: Optimizer, sparsifier: Sparsifier | None = None
) -> TrainingState:
    """Count what training holds. Call it after a step, while gradients and moments exist.

    Args:
        model: being trained.
        optimizer: of the model.
        sparsifier: that is attached to them, for the masks and momenta it holds.
    """
    stored = [module for module in model.modules() if isinstance(module, SparseLayer)]
    indices = [tensor for layer in stored for tensor in _indices(layer)]
    if sparsifier is not None:
        for connections in sparsifier.connections.values():
            indices += [value for value in vars(connections).values() if isinstance(value, Tensor)]
    structure = {id(buffer) for layer in stored for buffer in layer.buffers(recurse=False)}
    numbers = [buffer for buffer in model.buffers() if id(buffer) not in structure]
    parameters = list(model.parameters())
    moments = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return TrainingState(
        values=_bytes([*parameters, *numbers]),
        gradients=_bytes(p.grad for p in parameters if p.grad is not None),
        optimizer=_bytes(moments),
        indices=_bytes(indices),
    )


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, the indices of kept weights included."""
    return _bytes([*model.parameters(), *model.buffers()])


@torch.no_grad()
def forward_latencies(
    models: Mapping[str, nn.Module], inputs: Tensor, *, seconds: float = 0.3
) -> dict[str, Latency]:
    """Time the forward passes of models on the same inputs, taking turns.

    Args:
        models: name -> model, timed in evaluation mode and without gradients; their modes are restored.
        inputs: one batch.
        seconds: that all of it should take, about.

    Returns:
        Seconds a call, see :func:`openwork.timing.latencies`.
    """
    modes = {name: model.training for name, model in models.items()}
    try:
        calls = {name: _forward(model.eval(), inputs) for name, model in models.items()}
        return latencies(calls, seconds=seconds)
    finally:
        for name, model in models.items():
            model.train(modes[name])


def _forward(model: nn.Module, inputs: Tensor) -> Callable[[], object]:
    return lambda: model(inputs)


def _indices(layer: SparseLayer[Any]) -> list[Tensor]:
    prepared = layer.prepared
    derived = [*prepared.walk, *prepared.transposed]
    return [layer.weight_crow, layer.weight_col, prepared.crow, prepared.col, *derived]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind tensors; what they share is counted once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
