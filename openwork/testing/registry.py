"""The registry of promises, and how one is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, overload

from openwork.calibrate.layer_drop import LayerDrop
from openwork.merger import Merging
from openwork.method import Method
from openwork.testing.trial import Trial

Check = Callable[[Trial], None]
Subject = Literal["methods", "connections", "forms", "models", "blocks"]
"""What a promise is about: any method; the connections that one keeps; the other form that one gives to layers; the models that
one merges; the blocks that one drops."""


@dataclass(frozen=True)
class Promise:
    """A check, and what it is about."""

    check: Check
    about: Subject

    def concerns(self, cls: type[Method]) -> bool:
        """Whether methods of this class make it."""
        return self.about in ("methods", subject(cls))


def subject(cls: type[Method]) -> Subject:
    """What the promises of methods of this class are about."""
    if issubclass(cls, Merging):
        return "models"
    if issubclass(cls, LayerDrop):
        return "blocks"
    return "forms" if cls.restructures else "connections"


PROMISES: dict[str, Promise] = {}


class BrokenPromise(AssertionError):
    """A method does not do what every method must do."""


@overload
def promise(check: Check) -> Check: ...


@overload
def promise(*, about: Subject) -> Callable[[Check], Check]: ...


def promise(check: Check | None = None, *, about: Subject = "methods") -> Check | Callable[[Check], Check]:
    """Add a check to the suite, under the function's name and with its docstring as the promise.

    Args:
        check: raises :class:`BrokenPromise` where a trial breaks the promise.
        about: who makes it: all ``methods``; those that choose ``connections`` or keep them; those that give layers other
            ``forms``; that merge ``models``; or that drop ``blocks``.
    """

    def register(check: Check) -> Check:
        PROMISES[check.__name__.replace("_", " ")] = Promise(check, about)
        return check

    return register if check is None else register(check)


def require(condition: bool, found: str) -> None:
    """Break the promise unless the condition holds, and say what was found."""
    if not condition:
        raise BrokenPromise(found)
