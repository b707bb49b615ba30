"""Choosing the fastest form of one layer: a contest of calls that take turns.

A :class:`Trial` is one layer at one size of batch: it names the forms that suit, sparse and dense, and makes each of them. What
kind of layer it is matters to nobody here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from openwork.layouts.csr import CSR
from openwork.pack.decisions import MARGIN, Decision
from openwork.pack.memory import Memory
from openwork.timing import Latency, race

ORIGINAL = "dense"
"""The name of what torch does by itself."""

F = TypeVar("F")
"""A layout with the weights in it."""


class Trial(ABC, Generic[F]):
    """One layer at one size of batch.

    Attributes:
        topology: its connections.
        shape: ``(out, in, *kernel)``.
        batch: samples in a call.
    """

    topology: CSR
    shape: tuple[int, ...]
    batch: int

    @abstractmethod
    def forms(self) -> dict[str, bool]:
        """The layouts that suit: name -> whether it is dense. :data:`ORIGINAL` is one of them."""

    @abstractmethod
    def key(self) -> str:
        """What a measurement depends on."""

    @abstractmethod
    def hold(self, form: str) -> F:
        """Make one."""

    @abstractmethod
    def call(self, held: F) -> Callable[[], object]:
        """What is timed: a call of a form on random inputs."""

    def contest(self, seconds: float) -> dict[str, Latency]:
        """Time all forms, in about so many seconds together; who is clearly slower drops out early, not the best dense one."""
        forms = self.forms()
        calls = {form: self.call(self.made(form)) for form in forms}
        return race(calls, seconds=seconds, rounds=5, always=[form for form in forms if forms[form]])

    def made(self, form: str) -> F:
        """As :meth:`hold`, once: the winner of a contest is there already."""
        made: dict[str, F] = vars(self).setdefault("_made", {})
        if form not in made:
            made[form] = self.hold(form)
        return made[form]


def choose(name: str, trial: Trial[F], seconds: float, memory: Memory | None) -> tuple[F, Decision]:
    """The fastest form of a layer, and what was measured."""
    times, calm = _times(trial, seconds, memory)
    is_dense = trial.forms()
    dense = min((form for form in times if is_dense[form]), key=lambda form: times[form])
    best = _winner(times, dense)
    why = _why_dense(trial, times, dense) if is_dense[best] else "fastest here"
    decision = Decision(
        name,
        trial.shape,
        trial.topology.kept,
        trial.batch,
        best,
        dense,
        times[dense] * 1e3,
        times[best] * 1e3,
        why,
        calm,
    )
    return trial.made(best), decision


def _times(trial: Trial[F], seconds: float, memory: Memory | None) -> tuple[dict[str, float], bool]:
    """Median seconds of every form, and whether the machine was calm. Only calm measurements are remembered."""
    key = trial.key()
    if memory is not None and (known := memory.recall(key)):
        return known, True
    measured = trial.contest(seconds)
    times = {form: latency.median for form, latency in measured.items()}
    calm = all(latency.is_calm for latency in measured.values())
    if calm and memory is not None:
        memory.remember(key, times)
    return times, calm


def _winner(times: dict[str, float], dense: str) -> str:
    """The fastest form, or what is simpler where the gain could be noise: dense before sparse, torch's own before others."""
    best = min(times, key=lambda form: times[form])
    for simpler in (dense, ORIGINAL):
        if times[simpler] < times[best] * MARGIN:
            best = simpler
    return best


def _why_dense(trial: Trial[F], times: dict[str, float], dense: str) -> str:
    is_dense = trial.forms()
    sparse = {form: t for form, t in times.items() if not is_dense[form]}
    if not sparse:
        return "no sparse layout suits it"
    fastest = min(sparse, key=lambda form: sparse[form])
    # The time of a sparse layout is about proportional to what it keeps.
    needed = 1.0 - trial.topology.density * times[dense] / (sparse[fastest] * MARGIN)
    wins = (
        f"would win from a sparsity of about {needed:.2f}"
        if 0.0 < needed < 0.999
        else "no sparsity would win at this size"
    )
    return f"stays dense: {fastest} takes {sparse[fastest] / times[dense]:.2f} times as long, {wins}"


DENSITY_STEP = 1.06
"""Layers of one shape whose densities differ by less than this factor are measured once."""


def density_step(topology: CSR) -> int:
    """A number that is equal for densities measured as one."""
    return round(math.log(max(topology.density, 1e-6)) / math.log(DENSITY_STEP))
