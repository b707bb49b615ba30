"""Promises about what a method says of itself: its page, its value, its record."""

from __future__ import annotations

import dataclasses
import json
import re

from openwork.method import registry
from openwork.testing.registry import BrokenPromise, promise, require
from openwork.testing.trial import Trial


@promise
def is_registered_and_documented(trial: Trial) -> None:
    """It is found by its name, says its paper and kind, and its docstring opens with one sentence and
    explains every option of its own.
    """
    cls = trial.cls
    found = registry().get(getattr(cls, "name", ""))
    require(
        found is cls,
        f"registry() has {found} under {getattr(cls, 'name', None)!r}: decorate the class with @method",
    )
    require(bool(cls.paper.strip()) and bool(cls.kind.strip()), f"paper {cls.paper!r}, kind {cls.kind!r}")
    text = (cls.__doc__ or "").strip()
    require(bool(text) and not text.startswith(f"{cls.__name__}("), "the class has no docstring")
    first = text.split("\n\n")[0].strip()
    require(
        first.endswith((".", ":")), f"the docstring opens with {first!r}, which ends with neither '.' nor ':'"
    )
    inherited = {
        f.name for base in cls.__mro__[1:] if dataclasses.is_dataclass(base) for f in dataclasses.fields(base)
    }
    explained = text.partition("Args:")[2]
    for f in dataclasses.fields(cls):
        if f.name not in inherited:
            require(
                bool(re.search(rf"\b{f.name}\b[^:\n]*:", explained)),
                f"the docstring does not explain the option {f.name!r}",
            )


@promise
def is_a_value(trial: Trial) -> None:
    """It is a frozen dataclass: equal when its options are, and never changed."""
    one, two = trial.method(), trial.method()
    require(one == two, f"two with equal options differ: {one} and {two}")
    require(one != trial.method(seed=one.seed + 1), "two with different seeds are equal")
    try:
        one.seed = 7  # type: ignore[misc]
    except dataclasses.FrozenInstanceError:
        return
    raise BrokenPromise("an option could be assigned: make it @dataclass(frozen=True)")


@promise
def record_is_plain_data(trial: Trial) -> None:
    """Its record names the method and every option, and survives JSON unchanged."""
    made = trial.method()
    record = made.record()
    again = json.loads(json.dumps(record))
    require(again == record, f"{record} comes back from JSON as {again}")
    missing = {f.name for f in dataclasses.fields(made)} - record.keys()
    require(not missing and record["method"] == made.name, f"the record lacks {missing or 'the name'}")
