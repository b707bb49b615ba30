"""Topologies whose units were shuffled are found again; curves do not care for the order."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork import curve_distance, matched, persistence
from tests.probes.test_small_world import random_layer

pytest.importorskip("scipy")


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 1000))
def test_a_match_is_what_it_says(outputs, inputs, density, seed):
    one, other = (
        random_layer(outputs, inputs, density, seed),
        random_layer(outputs, inputs, density, seed + 1),
    )
    found = matched(one, other)
    laid = other[found.outputs][:, found.inputs]
    assert sorted(found.outputs.tolist()) == list(range(outputs))
    assert sorted(found.inputs.tolist()) == list(range(inputs))
    assert found.common == int((one & laid).sum())
    assert found.distance == int((one ^ laid).sum())
    assert found.common >= int((one & other).sum())


def test_shuffled_units_with_names_on_one_side_are_found_again():
    one = random_layer(30, 20, 0.3, 0)
    shuffled = one[torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    found = matched(one, shuffled, fixed_inputs=True)
    assert found.distance == 0
    assert torch.equal(found.inputs, torch.arange(20))
    assert torch.equal(shuffled[found.outputs], one)
    assert matched(one, shuffled, fixed_inputs=True, fixed_outputs=True).common == int((one & shuffled).sum())


def test_it_is_near_the_best_of_all_orders():
    for seed in range(8):
        one, other = random_layer(4, 5, 0.4, seed), random_layer(4, 5, 0.4, seed + 50)
        best = max(
            int((one & other[list(rows)][:, list(columns)]).sum())
            for rows in itertools.permutations(range(4))
            for columns in itertools.permutations(range(5))
        )
        assert best - 1 <= matched(one, other).common <= best


def test_curves():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(9, 7, generator=g) * (torch.rand(9, 7, generator=g) < 0.4)
    one = persistence(w)
    shuffled = w[torch.randperm(9, generator=g)][:, torch.randperm(7, generator=g)]
    assert curve_distance(one, persistence(4.0 * shuffled)) == 0.0
    other = persistence(torch.randn(8, 11, generator=g))
    assert curve_distance(one, other) == curve_distance(other, one) > 0.0
    levels = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000

    def parts(p):
        return torch.stack([(p.levels[:, None] >= levels).sum(0)]).squeeze()

    def curve(p):
        return torch.cat([torch.tensor([p.units]), p.parts])[parts(p)] / p.units

    expected = float((curve(one) - curve(other)).square().mean().sqrt())
    assert curve_distance(one, other) == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="of one shape"):
        matched(torch.ones(2, 3, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="starts=0"):
        matched(torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool), starts=0)
