"""Who takes part: the methods of the shelf at one sparsity, with what their papers recommend, fitted to a short run.

Nobody is tuned. Every option is the method's default but for what has to fit the setting: its length, how often it changes the
topology (often enough for a run that is a hundred times shorter than the papers'), the ratio of n:m patterns, how many examples
there are. And the split among layers is the same for all, since it decides more than the method does, except where finding it is
the method's own idea.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from openwork.compare.contest import Contestant
from openwork.compare.perceptrons import Perceptrons
from openwork.method import Method, registry
from openwork.patterns import NM, Groups, Pattern, pattern
from openwork.pruner import Pruning
from openwork.sparsifier import Training
from openwork.train.static_random import StaticRandom

UPDATES = 15
"""How many changes of topology a run has at least."""

TRAINED = 1 / 2
"""Part of the steps before a method prunes that wants a trained network; in the others what is left is trained on."""

UNSCALED = "static_random, unscaled"

SPLIT = "erk"
"""How connections are shared among layers."""

LARGEST_GROUP = 64
"""Inputs in a group of an n:m pattern, at most."""


def shelf() -> list[type[Method]]:
    """Every registered method that decides which connections a network has, while it trains or before. Those that decide on whole
    units are not among them: the units of the last layer are the answers.
    """
    return [
        cls
        for cls in registry().values()
        if issubclass(cls, (Training, Pruning)) and not cls.reads_zeros and not _of_units(cls)
    ]


def _of_units(cls: type[Method]) -> bool:
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    spelling = defaults["pattern"]
    return isinstance(spelling, (str, Pattern)) and isinstance(pattern(spelling), Groups)


def field(
    methods: Iterable[type[Method]],
    sparsity: float,
    steps: int,
    model: Perceptrons,
    *,
    split: str | None = SPLIT,
    examples: int | None = None,
) -> list[Contestant]:
    """A dense network with as many connections as the sparse ones keep, a random topology whose weights are not scaled to it
    (methods that prune before training do not either), then every method.

    Args:
        methods: which.
        sparsity: fraction of zeros, over all weights.
        steps: of every run.
        model: the networks that become sparse.
        split: the allocation of all methods but those of which it is a part (:attr:`openwork.method.Method.splits`); None
            leaves each its default.
        examples: to train on, for methods that need to know.
    """
    small = model.small(round((1.0 - sparsity) * model.connections))
    unscaled = StaticRandom(sparsity=sparsity, steps=steps, init="keep")
    return [Contestant("dense, small", model=small), Contestant(UNSCALED, unscaled)] + [
        entry(cls, sparsity, steps, model.sizes[:-1], split=split, examples=examples) for cls in methods
    ]


def entry(
    cls: type[Method],
    sparsity: float,
    steps: int,
    inputs: Sequence[int],
    *,
    split: str | None = SPLIT,
    examples: int | None = None,
) -> Contestant:
    """One method. ``inputs`` of every layer say which n:m patterns fit."""
    options: dict[str, Any] = {"sparsity": sparsity}
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    if "steps" in defaults:
        options["steps"] = steps
    if "samples" in defaults and examples is not None:
        options["samples"] = examples
    if split is not None and not cls.splits:
        options["allocation"] = split
    if isinstance(every := defaults.get("every"), int) and every > 1:
        options["every"] = max(1, min(every, steps // UPDATES))
    spelling, name = defaults["pattern"], cls.name
    if isinstance(spelling, str) and isinstance(pattern(spelling), NM):
        options["pattern"] = str(nearest_nm(sparsity, inputs))
        name = f"{name} {options['pattern']}"
    early = issubclass(cls, Pruning) and cls.before_training
    return Contestant(name, cls(**options), pruned_at=0.0 if early else TRAINED)


def nearest_nm(sparsity: float, inputs: Sequence[int]) -> NM:
    """The n:m pattern that comes nearest to a sparsity from above and fits layers of so many inputs; among equals that of the
    smallest group.

    Raises:
        ValueError: none is that sparse and still keeps something.
    """
    common = math.gcd(*inputs)
    sizes = [m for m in range(2, min(common, LARGEST_GROUP) + 1) if common % m == 0]
    found = [NM(keep, m) for m in sizes if (keep := math.floor((1.0 - sparsity) * m + 1e-9))]
    if not found:
        raise ValueError(
            f"no n:m pattern of sparsity {sparsity:g} or a little more fits layers of {', '.join(map(str, inputs))} inputs: "
            f"choose widths with a common divisor of {math.ceil(1 / (1 - sparsity) - 1e-9)} or more"
        )
    return max(found, key=lambda nm: (nm.keep / nm.of, -nm.of))
