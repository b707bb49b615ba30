"""Which saved states a run goes on from, and which it refuses before anything has changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from openwork.connections import Connections
from openwork.grid import Shape
from openwork.method import Method


def require_fit(state: Mapping[str, Any], method: Method, connections: Mapping[str, Connections]) -> None:
    """Refuse a saved state that is not of this run, or does not fit the connections it has by name."""
    same_run(state, method, {name: c.weight.shape for name, c in connections.items()})
    for name, c in connections.items():
        for what, tensor in c.remembered().items():
            saved = state["remembered"][name].get(what)
            if not _has_contents(saved) or saved.shape != tensor.shape:
                raise ValueError(f"the saved {what} of {name} is no tensor {list(tensor.shape)}")
        if c.weight.stored and not torch.equal(state["positions"][name].to(c.device), c.positions):
            raise ValueError(
                f"the stored topology of {name} is not the saved one: load the model's state_dict first"
            )


def same_run(state: Mapping[str, Any], method: Method, shapes: Mapping[str, Shape]) -> None:
    """Refuse a saved state of another method, other options or other parameters, or one that nobody has saved."""
    _well_formed(state)
    saved, own = state["method"], method.record()
    different = [key for key in own.keys() | saved.keys() if own.get(key) != saved.get(key)]
    if different:
        told = ", ".join(
            f"{key}: saved {saved.get(key)!r}, now {own.get(key)!r}" for key in sorted(different)
        )
        raise ValueError(f"the saved state is of another run: {told}. Attach the method that was saved")
    covered = state["positions"].keys(), state["remembered"].keys()
    if missing := (shapes.keys() ^ covered[0]) | (shapes.keys() ^ covered[1]):
        raise ValueError(
            f"the saved state covers other parameters: only one side has {', '.join(sorted(missing))}"
        )
    for name, shape in shapes.items():
        positions = state["positions"][name]
        if not _has_contents(positions) or positions.dtype != torch.int64 or positions.dim() != 1:
            raise ValueError(f"the saved topology of {name} is no vector of int64 positions")
        if positions.numel() and (int(positions.min()) < 0 or int(positions.max()) >= math.prod(shape)):
            raise ValueError(f"the saved topology of {name} does not fit its shape {list(shape)}")
        if not bool((positions[1:] > positions[:-1]).all()):
            raise ValueError(
                f"the saved topology of {name} is not in ascending order, or names a connection twice"
            )


def _well_formed(state: Mapping[str, Any]) -> None:
    """Refuse what is not the ``state_dict()`` of a sparsifier before anything in it is believed."""

    def require(key: str, holds: bool) -> None:
        if not holds:
            found = type(state.get(key)).__name__
            raise ValueError(
                f"this is not the state_dict() of a sparsifier: {key!r} is {found}, or holds something else"
            )

    for key in ("format", "step", "updates", "skipped"):
        require(key, type(state.get(key)) is int and state[key] >= 0)
    others = state.get("others")
    require("others", isinstance(others, list) and all(type(count) is int and count >= 0 for count in others))
    for key in ("method", "positions", "remembered", "state"):
        require(key, isinstance(state.get(key), Mapping))
    require("method", _is_plain(state["method"]))
    require("remembered", all(isinstance(held, Mapping) for held in state["remembered"].values()))
    require("state", all(_has_contents(tensor) for tensor in state["state"].values()))
    if state["format"] != 1:
        raise ValueError(
            f"the saved state is of format {state['format']}, and this openwork reads format 1: update openwork"
        )
    try:
        torch.Generator().set_state(state["generator"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"the saved state of the random generator cannot be restored: {error}") from error


def _has_contents(value: Any) -> bool:
    """Whether a value is a tensor with a number of its own in each place, so that it takes no more room than it has."""
    if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
        return False
    return value.nbytes <= value.untyped_storage().nbytes()


def _is_plain(value: object) -> bool:
    """Whether a value is made of what a record of a method is made of, so that it can be compared with one."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))
