"""The suite: a method is put through every promise, and what is broken is told in one error."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection
from typing import Any

from openwork.calibrate.layer_drop import LayerDrop
from openwork.calibrator import BlockCalibrated, Calibrated, ModelCalibrated
from openwork.merger import Merging
from openwork.method import Method
from openwork.pruner import Pruning
from openwork.restructuring import Restructuring
from openwork.sparsifier import SparsifierWarning, Training
from openwork.testing.promises import PROMISES
from openwork.testing.registry import BrokenPromise, subject
from openwork.testing.trial import SHORT, Trial

SAID = frozenset({"is registered and documented", "is a value", "record is plain data"})
"""Promises about what a method says of itself (:mod:`openwork.testing.promises.description`): they hold for every method."""


KINDS = {
    "connections": "leaves layers their form",
    "forms": "gives layers another form",
    "models": "merges models",
    "blocks": "drops blocks",
}


def check_method(cls: type[Method], only: Collection[str] | None = None, /, **options: Any) -> None:
    """Put a method through every check.

    Args:
        cls: a registered method that works in training, prunes at once, calibrates, restructures layers, merges models, or drops
            blocks; of any other, what it says of itself can be checked (:data:`SAID`).
        only: names of the promises to check; by default all of :func:`checks` that such a method makes.
        options: options of the method. Short schedules are filled in, see :data:`SHORT`.

    Raises:
        BrokenPromise: lists each broken promise and what was found.
        TypeError: ``cls`` is no method of either sort.
        ValueError: ``only`` names an unknown promise, or one that such a method does not make.
    """
    if unknown := set(only or ()) - PROMISES.keys():
        raise ValueError(
            f"no promise is called {', '.join(sorted(unknown))}; there are {', '.join(PROMISES)}"
        )
    carried_out = (
        Training, Pruning, Calibrated, BlockCalibrated, ModelCalibrated, Restructuring, Merging, LayerDrop,
    )  # fmt: skip
    if not issubclass(cls, carried_out) and not (only and set(only) <= SAID):
        raise TypeError(
            f"{cls.__name__} is neither a Training nor a Pruning nor a Calibrated method nor a Restructuring: there is no verb "
            "to check it with"
        )
    if strange := [name for name in only or () if not PROMISES[name].concerns(cls)]:
        raise ValueError(
            f"{cls.__name__} {KINDS[subject(cls)]}, and makes no promise that {', '.join(strange)}"
        )
    fields = {f.name for f in dataclasses.fields(cls)}
    trial = Trial(cls, {**{name: value for name, value in SHORT.items() if name in fields}, **options})
    broken: list[str] = []
    cause: Exception | None = None
    chosen = {name: p for name, p in PROMISES.items() if p.concerns(cls) and (only is None or name in only)}
    for name, promise in chosen.items():
        try:
            with warnings.catch_warnings():
                # in networks this small and thin, a rule that ranks all layers together may well empty one, and says so
                warnings.filterwarnings("ignore", ".*collapsed a layer", SparsifierWarning)
                promise.check(trial)
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
    return {name: " ".join((promise.check.__doc__ or "").split()) for name, promise in PROMISES.items()}
