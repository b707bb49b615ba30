"""When, and how much.

Two questions rule every gradual method: *is an update due at this step?* (:class:`Periodic`) and *how large is the number
now?* (a :class:`Schedule`). Any scalar option of a method may be a schedule instead of a number.

Steps are counted from 1: step 1 is the first optimizer step. Positions in time are fractions of the run, 0 its beginning
and 1 its last step, so the same method fits a run of any length.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """A number as a function of the step: ``start`` up to ``begin``, ``stop`` from ``until`` on, a curve in between.

    Args:
        start: value at the beginning of the window.
        stop: value at its end.
        begin, until: the window, as fractions of the run.
    """

    start: float = 0.0
    stop: float = 0.0
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin <= self.until <= 1.0:
            raise ValueError(
                f"a schedule's window is a part of the run, 0 <= begin <= until <= 1; got {self.begin} to {self.until}"
            )

    @abstractmethod
    def remaining(self, progress: float) -> float:
        """How much of the way from ``start`` to ``stop`` is still ahead, 1 to 0, for ``progress`` in [0, 1]."""

    def at(self, fraction: float) -> float:
        """The value when ``fraction`` of the run is done."""
        if fraction <= self.begin:
            return self.start
        if fraction >= self.until:
            return self.stop
        progress = (fraction - self.begin) / (self.until - self.begin)
        return self.stop + (self.start - self.stop) * self.remaining(progress)


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """A straight line."""

    def remaining(self, progress: float) -> float:
        return 1.0 - progress


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """``(1 - progress) ** power``: fast first, slow at the end. Power 3 is the cubic of Zhu & Gupta (2017)."""

    power: float = 3.0

    def remaining(self, progress: float) -> float:
        return float((1.0 - progress) ** self.power)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine wave, flat at both ends (the drop fraction of RigL)."""

    def remaining(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class OneShot(Schedule):
    """``start`` before the end of the window, ``stop`` from there on."""

    def remaining(self, progress: float) -> float:
        return 1.0


Scalar = float | Schedule
"""A number, or a number as a function of the step."""


def value_at(scalar: Scalar, step: int, steps: int) -> float:
    """The value of a number or schedule at ``step`` of a run of ``steps``."""
    return scalar.at(step / steps) if isinstance(scalar, Schedule) else float(scalar)


@dataclass(frozen=True)
class Periodic:
    """Every ``every`` steps from step ``first`` to step ``last``, both included.

    Args:
        every: steps between two events, at least 1.
        first, last: the window in steps. ``last < first`` means never.
        closing: whether ``last`` is an event in any case, so that what is approached gradually is also reached.
    """

    every: int
    first: int
    last: int
    closing: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"an event every {self.every} steps cannot be: give at least 1")

    def due(self, step: int) -> bool:
        if not self.first <= step <= self.last:
            return False
        return (step - self.first) % self.every == 0 or (self.closing and step == self.last)
