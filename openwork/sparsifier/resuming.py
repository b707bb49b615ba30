"""Which saved states a run goes on from, and which it refuses before anything has changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from openwork.connections import Connections
from openwork.grid import Shape
from openwork.method import Method
from openwork.resuming import has_contents, is_count, require, require_same_method, require_well_formed


def require_fit(state: Mapping[str, Any], method: Method, connections: Mapping[str, Connections]) -> None:
    """Refuse a saved state that is not of this run, or does not fit the connections it has by name."""
    same_run(state, method, {name: c.weight.shape for name, c in connections.items()})
    for name, c in connections.items():
        for what, tensor in c.remembered().items():
            saved = state["remembered"][name].get(what)
            if not has_contents(saved) or saved.shape != tensor.shape:
                raise ValueError(f"the saved {what} of {name} is no tensor {list(tensor.shape)}")
        if c.weight.stored and not torch.equal(state["positions"][name].to(c.device), c.positions):
            raise ValueError(
                f"the stored topology of {name} is not the saved one: load the model's state_dict first"
            )


def same_run(state: Mapping[str, Any], method: Method, shapes: Mapping[str, Shape]) -> None:
    """Refuse a saved state of another method, other options or other parameters, or one that nobody has saved."""
    _well_formed(state)
    require_same_method(state, method, "Attach")
    covered = state["positions"].keys(), state["remembered"].keys()
    if missing := (shapes.keys() ^ covered[0]) | (shapes.keys() ^ covered[1]):
        raise ValueError(
            f"the saved state covers other parameters: only one side has {', '.join(sorted(missing))}"
        )
    for name, shape in shapes.items():
        positions = state["positions"][name]
        if not has_contents(positions) or positions.dtype != torch.int64 or positions.dim() != 1:
            raise ValueError(f"the saved topology of {name} is no vector of int64 positions")
        if positions.numel() and (int(positions.min()) < 0 or int(positions.max()) >= math.prod(shape)):
            raise ValueError(f"the saved topology of {name} does not fit its shape {list(shape)}")
        if not bool((positions[1:] > positions[:-1]).all()):
            raise ValueError(
                f"the saved topology of {name} is not in ascending order, or names a connection twice"
            )


def _well_formed(state: Mapping[str, Any]) -> None:
    """Refuse what is not the ``state_dict()`` of a sparsifier before anything in it is believed."""
    own = "a sparsifier"
    require_well_formed(state, own)
    for key in ("updates", "skipped"):
        require(state, own, key, is_count(state.get(key)))
    require(
        state, own, "others", isinstance(state.get("others"), list) and all(map(is_count, state["others"]))
    )
    for key in ("positions", "remembered"):
        require(state, own, key, isinstance(state.get(key), Mapping))
    require(state, own, "remembered", all(isinstance(held, Mapping) for held in state["remembered"].values()))
