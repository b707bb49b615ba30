"""What every method at work saves to go on with the same bits, and which saved states it goes on from.

A sparsifier, a regularizer and a thawed part have it in common: the record of the method, the steps seen, the state of its
generator, and the tensors that it keeps. Nothing in a saved state is believed before it is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from openwork.method import Method

FORMAT = 1


def saved(
    method: Method, step: int, generator: torch.Generator, state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The part that all have in common, as tensors and plain values."""
    return {
        "format": FORMAT,
        "method": method.record(),
        "step": step,
        "generator": generator.get_state(),
        "state": dict(state),
    }


def require_well_formed(state: Mapping[str, Any], of: str) -> None:
    """Refuse what is not the ``state_dict()`` of ``of``, such as "a sparsifier"."""
    for key in ("format", "step"):
        require(state, of, key, is_count(state.get(key)))
    for key in ("method", "state"):
        require(state, of, key, isinstance(state.get(key), Mapping))
    require(state, of, "method", _is_plain(state["method"]))
    require(state, of, "state", all(has_contents(tensor) for tensor in state["state"].values()))
    if state["format"] != FORMAT:
        raise ValueError(
            f"the saved state is of format {state['format']}, and this openwork reads format {FORMAT}: update openwork"
        )
    try:
        torch.Generator().set_state(state["generator"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"the saved state of the random generator cannot be restored: {error}") from error


def require_same_method(state: Mapping[str, Any], method: Method, verb: str) -> None:
    """Refuse the state of another method or other options, and say which. ``verb`` is how to go on, such as "Attach"."""
    saved, own = state["method"], method.record()
    different = [key for key in own.keys() | saved.keys() if own.get(key) != saved.get(key)]
    if different:
        told = ", ".join(
            f"{key}: saved {saved.get(key)!r}, now {own.get(key)!r}" for key in sorted(different)
        )
        raise ValueError(f"the saved state is of another run: {told}. {verb} the method that was saved")


def require(state: Mapping[str, Any], of: str, key: str, holds: bool) -> None:
    """Refuse a state whose ``key`` does not hold what it should."""
    if not holds:
        found = type(state.get(key)).__name__
        raise ValueError(f"this is not the state_dict() of {of}: {key!r} is {found}, or holds something else")


def is_count(value: object) -> bool:
    """Whether a value is a whole number, and not negative."""
    return type(value) is int and value >= 0


def has_contents(value: Any) -> bool:
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
