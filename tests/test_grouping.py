"""Orders of channels: assignments against scipy, retained scores against every order there is."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.grouping import arranged, assignment, dealt, retained
from openwork.patterns import NM


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(0, 10**6), st.booleans())
def test_assignments_are_the_cheapest(n, seed, ties):
    optimize = pytest.importorskip("scipy.optimize")
    g = torch.Generator().manual_seed(seed)
    cost = (
        torch.randint(-3, 4, (n, n), generator=g).double()
        if ties
        else torch.randn(n, n, generator=g).double()
    )
    found = assignment(cost)
    assert sorted(found.tolist()) == list(range(n))
    rows, columns = optimize.linear_sum_assignment(cost.numpy())
    assert float(cost[torch.arange(n), found].sum()) == pytest.approx(
        float(cost.numpy()[rows, columns].sum())
    )


def test_channels_are_dealt_in_alternating_turns():
    importance = torch.tensor([5.0, 9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0])
    ranks = [importance[dealt(importance, 3)].tolist()[i : i + 3] for i in (0, 3, 6)]
    assert ranks == [[9.0, 4.0, 3.0], [8.0, 5.0, 2.0], [7.0, 6.0, 1.0]]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8)]),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 999),
)
def test_an_order_names_every_channel_and_never_keeps_less(nm, groups, rows, seed):
    keep, of = nm
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, groups * of, generator=g) * torch.rand(groups * of, generator=g) ** 3
    order = arranged(scores, keep, of)
    assert sorted(order.tolist()) == list(range(groups * of))
    assert retained(scores[:, order], keep, of) >= retained(scores, keep, of) - 1e-12
    start = max(retained(scores, keep, of), retained(scores[:, dealt(scores.sum(0), of)], keep, of))
    assert retained(scores[:, order], keep, of) >= start - 1e-12
    mask = NM(keep, of).choose(scores, 0)
    assert retained(scores, keep, of) == pytest.approx(float(scores.double()[mask].sum()))


def test_on_few_channels_it_comes_near_the_best_order_of_all():
    shares = []
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        scores = torch.rand(5, 6, generator=g) * torch.rand(6, generator=g) ** 3
        every = max(retained(scores[:, list(p)], 1, 2) for p in itertools.permutations(range(6)))
        found, before = (retained(scores[:, o], 1, 2) for o in (arranged(scores, 1, 2), torch.arange(6)))
        shares.append((found - before) / (every - before) if every > before else 1.0)
    assert sum(shares) / len(shares) > 0.9


def test_where_all_or_nothing_is_kept_there_is_nothing_to_gain():
    scores = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    assert arranged(scores, 4, 4).tolist() == arranged(scores, 0, 4).tolist() == list(range(8))
