"""The kept connections of one parameter, masked or stored.

A method sees a parameter only through :class:`Connections`: active connections sorted by position, their values and
gradients, a way to choose others, :meth:`Connections.rewired`, and one to take them over, :meth:`Connections.adopt`. What is
chosen waits as a :class:`Rewiring`. Two storages implement it:

- :class:`MaskedConnections`: the parameter is an ordinary dense tensor with exact zeros, or a shard of one;
- :class:`StoredConnections`: a layer holds only the kept values and their indices, and so does the optimizer.

Everything a method decides is decided here in terms of positions, so both storages take the same decisions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from openwork.connections.contract import Connections
from openwork.connections.latent import LatentConnections, require_latent
from openwork.connections.masked import MaskedConnections
from openwork.connections.rewiring import Rewiring
from openwork.connections.stored import StoredConnections
from openwork.patterns import Pattern
from openwork.weights import Weight

__all__ = [
    "Connections",
    "LatentConnections",
    "MaskedConnections",
    "Rewiring",
    "StoredConnections",
    "connect",
    "require_latent",
]


def connect(
    weight: Weight,
    pattern: Pattern,
    optimizers: Sequence[Optimizer],
    *,
    positions: Tensor | None = None,
    momentum: bool = False,
    activations: bool = False,
    masked: type[MaskedConnections] = MaskedConnections,
) -> Connections:
    """The connections of a weight in the storage it has. ``positions`` is the topology of a masked one (None = dense);
    ``momentum`` and ``activations`` say what growth will look at besides the gradient, ``masked`` which kind of masking."""
    if hasattr(weight.parameter, "device_mesh"):
        masked = _sharded(weight)
    if weight.stored:
        return StoredConnections(weight, pattern, optimizers, momentum=momentum)
    return masked(
        weight, pattern, optimizers, positions=positions, momentum=momentum, activations=activations
    )


def _sharded(weight: Weight) -> type[MaskedConnections]:
    """How the connections of a ``DTensor`` are masked."""
    if weight.stored:
        raise ValueError(
            f"{weight.name} holds only its kept connections, and is sharded over processes (a DTensor, as fully_shard makes "
            "them): train with DistributedDataParallel, whose processes each hold them all, or masked"
        )
    from openwork.connections.sharded import ShardedConnections  # loads much of torch.distributed

    return ShardedConnections
