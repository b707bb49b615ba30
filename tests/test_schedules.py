"""Schedules against the numbers of their papers."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.schedules import Cosine, Linear, OneShot, Periodic, Polynomial, value_at

KINDS = [Linear, Polynomial, Cosine, OneShot]


def test_the_cubic_of_gradual_pruning():
    curve = Polynomial(start=0.0, stop=0.9)
    values = [curve.at(i / 10) for i in range(11)]
    published = [0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9]
    assert values == pytest.approx(published, abs=1e-12)
    assert values[0] == 0.0
    assert values[-1] == 0.9  # exactly
    mean = sum(curve.at((i + 0.5) / 10_000) for i in range(10_000)) / 10_000
    assert mean == pytest.approx(0.9 * 3 / 4, abs=1e-6)


def test_half_way_is_seven_eighths():
    assert Polynomial(start=0.2, stop=1.0).at(0.5) == pytest.approx(0.2 + 0.8 * 7 / 8)


@settings(max_examples=30)
@given(st.floats(0, 1), st.floats(0.01, 1), st.floats(0, 1))
def test_cosine_is_rigls_drop_fraction(alpha, until, t):
    got = Cosine(start=alpha, stop=0.0, until=until).at(t)
    want = alpha / 2 * (1 + math.cos(math.pi * t / until)) if t < until else 0.0
    assert got == pytest.approx(want, abs=1e-12)


@settings(max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(0, 0.5),
    st.floats(0.5, 1),
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
)
def test_every_schedule_goes_from_start_to_stop_and_never_back(kind, start, stop, begin, until, times):
    s = kind(start=start, stop=stop, begin=begin, until=until)
    assert s.at(0.0) == start
    assert s.at(1.0) == stop
    way = [abs(s.at(t) - start) for t in sorted(times)]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(way))
    assert all(w <= abs(stop - start) + 1e-9 for w in way)


def test_one_shot_jumps_at_the_end_of_its_window():
    s = OneShot(start=1.0, stop=5.0, begin=0.2, until=0.6)
    assert [s.at(t) for t in (0.0, 0.3, 0.59, 0.6, 1.0)] == [1, 1, 1, 5, 5]


def test_a_number_is_a_constant_schedule():
    assert value_at(0.3, 7, 10) == 0.3
    assert value_at(Linear(start=0.0, stop=1.0), 7, 10) == pytest.approx(0.7)


@pytest.mark.parametrize("window", [(-0.1, 0.5), (0.6, 0.5), (0.5, 1.1)])
def test_impossible_windows_are_refused(window):
    with pytest.raises(ValueError, match="part of the run"):
        Linear(begin=window[0], until=window[1])


@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(-2, 12), st.integers(-2, 30), st.booleans())
def test_periodic_is_a_range(every, first, last, closing):
    expected = set(range(first, last + 1, every)) | ({last} if closing and last >= first else set())
    event = Periodic(every, first, last, closing)
    assert {step for step in range(-5, 40) if event.due(step)} == expected


def test_a_period_is_at_least_one_step():
    with pytest.raises(ValueError, match="at least 1"):
        Periodic(0, 1, 2)
