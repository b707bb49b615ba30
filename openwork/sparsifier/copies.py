"""A copy of the model, such as a running average of its weights, takes every change of the topology."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from openwork.connections import Connections, connect
from openwork.weights import prunable


def follow(connections: Mapping[str, Connections], copy: nn.Module) -> None:
    """Let the parameters of ``copy`` follow the connections of the same names, see :meth:`.Sparsifier.follow`."""
    inner = getattr(copy, "module", copy)
    weights = {w.name: w for w in prunable(inner)}
    found = []
    for name, c in connections.items():
        twin = weights.get(name)
        if twin is None or (twin.shape, twin.stored) != (c.weight.shape, c.weight.stored):
            raise ValueError(
                f"a copy that follows needs {name} {list(c.weight.shape)} in the storage it has in the model: make the copy "
                "with copy.deepcopy or AveragedModel once the model has its layers"
            )
        found.append((c, twin))
    with torch.no_grad():
        for c, twin in found:
            c.follow(connect(twin, c.pattern, ()))
