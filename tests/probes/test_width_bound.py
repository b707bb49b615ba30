"""The bound on the width of a random sparse network: its formula, its limits, and random graphs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork import er_capacity

TARGET = (5, 4, 3, 2)


def test_the_formula():
    layers = er_capacity((5, 40, 33, 2), TARGET, 0.3, delta=0.02)
    edges = 5 * 4 + 4 * 3 + 3 * 2
    assert [c.edges for c in layers] == [20, 12, 6]
    assert [c.pool for c in layers] == [1, 10, 11]
    for c in layers:
        assert c.needed == pytest.approx(math.log(edges / 0.02) / math.log(1 / 0.7))
        assert c.failure == pytest.approx(min(1.0, c.edges * 0.7**c.pool))
        assert c.least_density == pytest.approx(1 - (0.02 / edges) ** (1 / c.pool))
        assert c.enough == (c.pool >= c.needed) == (c.density >= c.least_density)


@given(p=st.floats(0.01, 0.95), more=st.floats(0.001, 0.04), wide=st.integers(4, 400))
def test_fewer_connections_need_more_width(p, more, wide):
    sparse, denser = (er_capacity((5, wide, wide, 2), TARGET, q)[1] for q in (p, p + more))
    assert sparse.needed >= denser.needed
    assert sparse.failure >= denser.failure


def test_the_limits():
    assert [c.needed for c in er_capacity(TARGET, TARGET, 1.0)] == [1.0] * 3
    assert all(c.enough and c.failure == 0 for c in er_capacity(TARGET, TARGET, 1.0))
    assert er_capacity(TARGET, TARGET, 0.0)[0].needed == math.inf
    mixed = er_capacity((5, 40, 33, 2), TARGET, (1.0, 0.5, 0.0))
    assert [c.enough for c in mixed] == [True, False, False]


def test_random_graphs_fail_as_often_as_the_bound_says():
    p, pool, inputs, outputs = 0.35, 9, 3, 2
    g = torch.Generator().manual_seed(3)
    graphs = torch.rand(40_000, outputs, inputs, pool, generator=g) < p
    missing = ~graphs.any(-1)
    assert float(missing.double().mean()) == pytest.approx((1 - p) ** pool, rel=0.05)
    failed = float(missing.flatten(1).any(1).double().mean())
    bound = er_capacity((4, inputs * pool, outputs), (4, inputs, outputs), p)[1].failure
    assert failed <= bound
    assert failed == pytest.approx(bound, rel=0.1)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="equally many widths"):
        er_capacity((5, 2), TARGET, 0.5)
    with pytest.raises(ValueError, match="narrower"):
        er_capacity((5, 3, 3, 2), TARGET, 0.5)
    with pytest.raises(ValueError, match="6 and 5 inputs"):
        er_capacity((6, 40, 33, 2), TARGET, 0.5)
    with pytest.raises(ValueError, match="density"):
        er_capacity((5, 40, 33, 2), TARGET, (0.5, 0.5))
    with pytest.raises(ValueError, match="delta"):
        er_capacity((5, 40, 33, 2), TARGET, 0.5, delta=0.0)
