"""The registry of promises, and how one is broken."""

from __future__ import annotations

from collections.abc import Callable

from openwork.testing.trial import Trial

Check = Callable[[Trial], None]

PROMISES: dict[str, Check] = {}


class BrokenPromise(AssertionError):
    """A method does not do what every method must do."""


def promise(check: Check) -> Check:
    """Add a check to the suite, under the function's name and with its docstring as the promise."""
    PROMISES[check.__name__.replace("_", " ")] = check
    return check


def require(condition: bool, found: str) -> None:
    """Break the promise unless the condition holds, and say what was found."""
    if not condition:
        raise BrokenPromise(found)
