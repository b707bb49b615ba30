"""What is given to a layer fits it: how many connections, which ones, their values, a state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from openwork.layouts.csr import CSR, described

STORED = ("weight_values", "weight_crow", "weight_col")
"""What stands for ``weight`` in the ``state_dict``."""


def check_held(topology: CSR, values: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless there is a value for each connection, and a bias for each output or none."""
    if values.shape != topology.col.shape or (bias is not None and bias.shape != topology.shape[:1]):
        given = [described(tensor) for tensor in (values, bias) if tensor is not None]
        raise ValueError(
            f"{topology.kept} connections {topology.shape} need values [{topology.kept}] and a bias "
            f"[{topology.shape[0]}] or none, not {' and '.join(given)}"
        )


def topology_of(weight: Tensor, kept: Tensor | CSR) -> CSR:
    """The connections of ``weight`` to keep: a topology, or a boolean mask of the weight's shape."""
    shape = weight.shape[0], math.prod(weight.shape[1:])
    fits = kept.shape == shape if isinstance(kept, CSR) else kept.shape in (weight.shape, shape)
    if not fits:
        raise ValueError(
            f"a weight {list(weight.shape)} needs kept connections of the same shape, not {tuple(kept.shape)}"
        )
    return kept if isinstance(kept, CSR) else CSR.from_mask(kept.reshape(shape))


def kept_count(shape: tuple[int, int], sparsity: float | None, kept: int | None) -> int:
    """How many random connections of a matrix of ``shape`` to keep, from the one of the two that is given."""
    if (sparsity is None) == (kept is None):
        raise TypeError("say how much to keep with exactly one of sparsity=, kept= and topology=")
    if kept is not None:
        return kept
    assert sparsity is not None
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is the fraction of zeros, between 0 and 1, not {sparsity}")
    return round((1 - sparsity) * shape[0] * shape[1])


def loaded(state: Mapping[str, Any], prefix: str, shape: tuple[int, int]) -> tuple[CSR, Tensor] | None:
    """The topology and the values of a layer of ``shape`` in a state, as they are there; None where neither is.

    Raises:
        ValueError: one of the arrays is missing, has no contents, or contradicts the others.
    """
    stored = {name: state[prefix + name] for name in STORED if prefix + name in state}
    if not stored:
        return None
    if len(stored) < len(STORED):
        lacking = ", ".join(f"{prefix}{name}" for name in STORED if name not in stored)
        raise ValueError(
            f"{prefix}weight: kept weights and their places are loaded together; {lacking} is missing"
        )
    for name, tensor in stored.items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            found = "one on the meta device" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{prefix}{name}: needs a tensor with contents, not {found}")
    values, crow, col = (stored[name] for name in STORED)
    topology = CSR(shape, crow, col).validate(f"{prefix}weight")
    if values.shape != col.shape:
        raise ValueError(
            f"{prefix}weight_values: {topology.kept} connections need [{topology.kept}], not {described(values)}"
        )
    return topology, values
