"""Contenders that take turns: who is clearly slower need not stay."""

import time

import pytest

from openwork.timing import Latency, latencies, race


def lasting(seconds: float, calls: list[float]):
    def call() -> None:
        calls.append(seconds)
        time.sleep(seconds)

    return call


def test_who_is_clearly_slower_drops_out_of_a_race() -> None:
    calls: list[float] = []
    fast, slow = 2e-3, 2e-2
    found = race({"slow": lasting(slow, calls), "fast": lasting(fast, calls)}, seconds=0.01, rounds=6)
    assert calls.count(slow) == 2  # a warm one, a round
    assert calls.count(fast) >= 7
    assert found["slow"].median >= slow > found["fast"].median >= fast
    assert found["slow"].samples == 1


def test_the_best_of_those_who_always_stay_does() -> None:
    calls: list[float] = []
    contenders = {"fast": lasting(1e-3, calls), "dense": lasting(1e-2, calls), "slower": lasting(2e-2, calls)}
    race(contenders, seconds=0.01, rounds=5, always=["dense", "slower"])
    assert calls.count(1e-2) == 6
    assert calls.count(2e-2) == 2


def test_all_stay_where_all_matter() -> None:
    calls: list[float] = []
    latencies({"fast": lasting(1e-3, calls), "slow": lasting(1e-2, calls)}, seconds=0.0, rounds=3)
    assert calls.count(1e-2) == 6


@pytest.mark.parametrize(
    ("samples", "disturbed", "calm"), [(9, 0, True), (9, 9, False), (5, 4, True), (4, 5, False)]
)
def test_calm(samples: int, disturbed: int, calm: bool) -> None:
    assert Latency(1, 1, 1, samples, disturbed).is_calm is calm
