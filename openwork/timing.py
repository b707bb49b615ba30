"""How long does a call take? Measured so that the answer can be trusted on a machine that is shared.

Contenders take turns in one process, many short samples each, and medians are compared: a neighbour who slows the machine
slows all of them. Samples during which the process had to make room for another are left out where enough remain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from statistics import quantiles

SAMPLE_SECONDS = 5e-4
"""A sample repeats what is faster than this: the clock and the call around it must not show."""


@dataclass(frozen=True)
class Latency:
    """Seconds one call takes.

    Attributes:
        median: of the samples.
        low: first quartile.
        high: third quartile.
        samples: how many there are.
        disturbed: how many were interrupted by other processes.
    """

    median: float
    low: float
    high: float
    samples: int
    disturbed: int

    @property
    def is_calm(self) -> bool:
        """Whether most samples were not interrupted."""
        return 2 * self.disturbed < self.samples + self.disturbed


def latencies(
    contenders: Mapping[str, Callable[[], object]], *, seconds: float = 0.3, rounds: int = 15
) -> dict[str, Latency]:
    """Time contenders against each other.

    They take turns: one sample each, round after round. A sample calls its contender as often as it takes to fill
    :data:`SAMPLE_SECONDS`, after three calls for warming up.

    Args:
        contenders: name -> what to call.
        seconds: that all samples of all contenders should take together, about.
        rounds: samples of each contender, at least.
    """
    repeats = {name: _repeats(call) for name, call in contenders.items()}
    samples: dict[str, list[tuple[float, bool]]] = {name: [] for name in contenders}
    finish = time.perf_counter() + seconds
    done = 0
    while done < rounds or time.perf_counter() < finish:
        for name, call in contenders.items():
            samples[name].append(_sample(call, repeats[name]))
        done += 1
    return {name: _summary(found) for name, found in samples.items()}


ELIMINATED = {1: 2.0, 2: 1.5, 4: 1.25}
"""After so many rounds of a race, a contender is out that took so many times as long as the best."""


def race(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 0.3,
    rounds: int = 9,
    always: Collection[str] = (),
) -> dict[str, Latency]:
    """As :func:`latencies`, for when only the fastest matter: who is clearly slower drops out early (:data:`ELIMINATED`), and its
    time is what was measured until then.

    Args:
        contenders: name -> what to call.
        seconds: that all samples should take together, about.
        rounds: samples of each contender that stays, at least.
        always: of these the best stays to the end, whatever the others do.
    """
    repeats: dict[str, int] = {}
    samples: dict[str, list[tuple[float, bool]]] = {name: [] for name in contenders}
    for name, call in contenders.items():
        call()
        first = _sample(call, 1)
        repeats[name] = _repeated(first[0])
        if repeats[name] == 1:
            samples[name].append(first)
    left = list(contenders)
    finish = time.perf_counter() + seconds
    done = 0
    while done < rounds or time.perf_counter() < finish:
        for name in left:
            if len(samples[name]) <= done:
                samples[name].append(_sample(contenders[name], repeats[name]))
        done += 1
        if limit := ELIMINATED.get(done):
            # The best of few samples: one that a neighbour disturbed decides nothing.
            best = {name: min(samples[name])[0] for name in left}
            stays = {name for name in left if best[name] <= limit * min(best.values())}
            stays |= {min(set(always) & set(left), key=lambda name: best[name])} if always else set()
            left = [name for name in left if name in stays]
    return {name: _summary(found) for name, found in samples.items()}


def _repeats(call: Callable[[], object]) -> int:
    for _ in range(2):
        call()
    begin = time.perf_counter()
    call()
    return _repeated(time.perf_counter() - begin)


def _repeated(seconds: float) -> int:
    """How often a sample repeats what takes so long."""
    return max(1, round(SAMPLE_SECONDS / max(seconds, 1e-7)))


def _sample(call: Callable[[], object], repeats: int) -> tuple[float, bool]:
    before = _interruptions()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats, _interruptions() != before


def _interruptions() -> int:
    """How often a thread of this process had to make room for another process."""
    try:
        import resource
    except ImportError:  # not on every system
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _summary(samples: list[tuple[float, bool]]) -> Latency:
    calm = [seconds for seconds, disturbed in samples if not disturbed]
    # On a crowded machine hardly any sample is calm, and the few that are were the lucky ones.
    used = calm if 2 * len(calm) >= len(samples) else [seconds for seconds, _ in samples]
    low, median, high = quantiles(used, n=4, method="inclusive") if len(used) > 1 else (used[0],) * 3
    return Latency(median, low, high, len(used), len(samples) - len(calm))
