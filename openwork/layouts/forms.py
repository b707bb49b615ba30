"""Which layers have a form that holds only their kept connections, and making it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from openwork.layouts import conv, embedding
from openwork.layouts.conv import SparseConv2d
from openwork.layouts.csr import CSR
from openwork.layouts.embedding import SparseEmbedding
from openwork.layouts.layer import SparseLayer
from openwork.layouts.linear import SparseLinear

STORABLE = "nn.Linear, nn.Conv2d and nn.Embedding"
"""The layers that have such a form, for errors."""


def storable(module: nn.Module) -> bool:
    """Whether a dense layer has a form that holds only kept connections. Subclasses do not, for they may compute anything."""
    if type(module) is nn.Conv2d:
        return not conv.unsuited(module)
    if type(module) is nn.Embedding:
        return not embedding.unsuited(module)
    return type(module) is nn.Linear


def stored(module: nn.Module, kept: Tensor | CSR) -> SparseLayer[Any]:
    """The layer that a :func:`storable` one becomes with only some of its connections; ``module`` is not changed.

    Args:
        module: a dense layer.
        kept: a boolean mask of the weight's shape, or the topology of the weight as a matrix ``[out, in * kernel]``.
    """
    if isinstance(module, nn.Conv2d):
        return SparseConv2d.from_conv(module, kept)
    if isinstance(module, nn.Embedding):
        return SparseEmbedding.from_embedding(module, kept)
    assert isinstance(module, nn.Linear)
    return SparseLinear.from_linear(module, kept)
