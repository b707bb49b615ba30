"""The suite: a method is put through every promise, and what is broken is told in one error."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from openwork.calibrator import BlockCalibrated, Calibrated, ModelCalibrated
from openwork.method import Method
from openwork.pruner import Pruning
from openwork.sparsifier import Training
from openwork.testing.promises import PROMISES
from openwork.testing.registry import BrokenPromise
from openwork.testing.trial import SHORT, Trial

SAID = frozenset({"is registered and documented", "is a value", "record is plain data"})
"""Promises about what a method says of itself (:mod:`openwork.testing.promises.description`): they hold for every method."""


def check_method(cls: type[Method], only: Collection[str] | None = None, /, **options: Any) -> None:
    """Put a method through every check.

    Args:
        cls: a registered method that works in training, prunes at once, or calibrates; of any other, what it says of itself can
            be checked (:data:`SAID`).
        only: names of the promises to check, all of :func:`checks` by default.
        options: options of the method. Short schedules are filled in, see :data:`SHORT`.

    Raises:
        BrokenPromise: lists each broken promise and what was found.
        TypeError: ``cls`` is no method of either sort.
        ValueError: ``only`` names an unknown promise.
    """
    if unknown := set(only or ()) - PROMISES.keys():
        raise ValueError(
            f"no promise is called {', '.join(sorted(unknown))}; there are {', '.join(PROMISES)}"
        )
    carried_out = (Training, Pruning, Calibrated, BlockCalibrated, ModelCalibrated)
    if not issubclass(cls, carried_out) and not (only and set(only) <= SAID):
        raise TypeError(
            f"{cls.__name__} is neither a Training nor a Pruning nor a Calibrated method: there is no verb to check it with"
        )
    fields = {f.name for f in dataclasses.fields(cls)}
    trial = Trial(cls, {**{name: value for name, value in SHORT.items() if name in fields}, **options})
    broken: list[str] = []
    cause: Exception | None = None
    chosen = {name: check for name, check in PROMISES.items() if only is None or name in only}
    for name, check in chosen.items():
        try:
            check(trial)
        except Exception as error:  # whatever a method does wrong is a finding
            found = str(error) if isinstance(error, BrokenPromise) else f"{type(error).__name__}: {error}"
            broken.append(f"- {name}: {found}")
            cause = cause or error
    if broken:
        raise BrokenPromise(
            "\n".join([f"{cls.__name__} breaks {len(broken)} of {len(chosen)} promises", *broken])
        ) from cause


def checks() -> dict[str, str]:
    """What :func:`check_method` checks: the name of each promise, and the promise itself."""
    return {name: " ".join((check.__doc__ or "").split()) for name, check in PROMISES.items()}
