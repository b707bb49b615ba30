"""Outliers and spectra split the total, which stays exact."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import openwork as ow
from openwork.layer_allocation import OWL, AlphaPruning, Fluctuation, Redundancy, Seen
from openwork.layer_allocation.redundancy import least_redundant
from openwork.layer_allocation.spectra import hill_exponent
from openwork.statistics import Statistics
from tests.calibrator.stages import gpt, windows


def seen(w, x):
    s = Statistics(w.shape[1], dtype=torch.float64)
    s.add(x)
    return Seen(w, s)


def test_the_outlier_ratio_is_that_of_all_layers_of_a_block_together():
    g = torch.Generator().manual_seed(0)
    block = [
        (torch.randn(o, 8, generator=g).double(), torch.randn(50, 8, generator=g).double() ** 3)
        for o in (5, 20)
    ]
    scores = torch.cat([(w.abs() * x.norm(dim=0)).flatten() for w, x in block])
    expected = 100 * float((scores > 3 * scores.mean()).double().mean())
    assert expected > 0
    assert OWL(threshold=3).measure([seen(w, x) for w, x in block]) == pytest.approx([expected] * 2)


layers = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5000)), min_size=1, max_size=8)


@settings(max_examples=100)
@given(layers, st.floats(0.01, 0.99), st.floats(0.01, 0.3))
def test_owl_meets_the_total_and_stays_within_reach(layers, density, reach):
    measures, sizes = zip(*layers, strict=True)
    densities = OWL(reach=reach).densities(measures, sizes, density)
    mean = sum(d * s for d, s in zip(densities, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(density, abs=1e-9)
    assert all(0 <= d <= 1 for d in densities)
    if 2 * reach < density < 1 - 2 * reach:  # nothing is cut
        assert all(density - 2 * reach - 1e-9 <= d <= density + 2 * reach + 1e-9 for d in densities)
    order = sorted(range(len(sizes)), key=lambda i: measures[i])
    assert all(densities[a] <= densities[b] + 1e-12 for a, b in itertools.pairwise(order))


@settings(max_examples=50)
@given(layers, st.floats(0.01, 0.99))
def test_alpha_pruning_meets_the_total_and_heavier_tails_stay_denser(layers, density):
    measures, sizes = zip(*layers, strict=True)
    densities = AlphaPruning().densities(measures, sizes, density)
    mean = sum(d * s for d, s in zip(densities, sizes, strict=True)) / sum(sizes)
    assert mean == pytest.approx(density, abs=1e-9)
    order = sorted(range(len(sizes)), key=lambda i: measures[i])
    assert all(densities[a] >= densities[b] - 1e-12 for a, b in itertools.pairwise(order))


@pytest.mark.parametrize("rule", [OWL(), AlphaPruning()])
def test_equal_layers_are_equally_dense_and_counts_are_exact(rule):
    scores = [torch.tensor(2.0)] * 3
    assert rule.counts([(4, 5), (4, 5), (4, 5)], 30, scores) == [10, 10, 10]
    scores = [torch.tensor(float(i)) for i in range(3)]
    assert sum(rule.counts([(4, 5), (7, 3), (11, 2)], 31, scores)) == 31


def test_hill_estimates_the_exponent_of_a_power_law():
    """Eigenvalues with density proportional to l^-a have the exponent a."""
    for exponent in (2.0, 3.5):
        values = torch.arange(1, 301, dtype=torch.float64).div(300).pow(-1 / (exponent - 1))
        assert hill_exponent(values.sqrt().diag()) == pytest.approx(exponent, rel=0.03)
    assert hill_exponent(torch.eye(5)) == math.inf
    assert hill_exponent(torch.zeros(3, 4)) == math.inf


@pytest.mark.parametrize("rule", [OWL(threshold=2.0, reach=0.1), AlphaPruning()])
def test_a_method_with_such_an_allocation_keeps_exactly_what_was_asked(rule):
    found = ow.sparsify_(gpt(), ow.SparseGPT(sparsity=0.7, allocation=rule), data=windows())
    assert found.plan.kept == round(0.3 * found.plan.numel)
    assert len({row.kept / row.numel for row in found.plan.sparse}) > 1
    if isinstance(rule, OWL):
        for i in range(3):
            shares = [
                row.kept / row.numel for row in found.plan.sparse if row.name.startswith(f"blocks.{i}.")
            ]
            assert max(shares) - min(shares) < 2e-3
    with pytest.raises(ValueError, match="measures the layers of a trained network on data"):
        ow.plan(gpt(), ow.SparseGPT(allocation=rule))


def test_owl_gives_each_layer_an_n_of_its_own():
    model = gpt()
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[:, 0] *= 40
    rule = OWL(threshold=6, reach=0.25)
    found = ow.sparsify_(model, ow.Wanda(sparsity=0.5, pattern="n:4", allocation=rule), data=windows())
    patterns = {row.name: row.pattern for row in found.plan.sparse}
    assert len(set(patterns.values())) > 1
    assert {p.of for p in patterns.values()} == {4}
    assert all(patterns[name].allows(mask) for name, mask in found.masks.items())
    assert str(patterns["blocks.1.mlp.up.weight"]) in str(found.plan)
    uniform = ow.sparsify_(gpt(), ow.SparseGPT(sparsity=0.5, pattern="n:4"), data=windows())
    same = ow.sparsify_(gpt(), ow.SparseGPT(sparsity=0.5, pattern="2:4"), data=windows())
    assert all(torch.equal(mask, same.masks[name]) for name, mask in uniform.masks.items())


@settings(max_examples=60, deadline=None)
@given(layers, st.floats(0.01, 0.99), st.floats(0.0, 0.5))
def test_the_least_redundancy_is_that_of_a_linear_programme(layers, density, reach):
    optimize = pytest.importorskip("scipy.optimize")
    redundancy, sizes = zip(*layers, strict=True)
    found = least_redundant(redundancy, sizes, density, reach)
    bounds = [(max(density - reach, 0), min(density + reach, 1))] * len(sizes)
    cost = [r * s for r, s in zip(redundancy, sizes, strict=True)]
    best = optimize.linprog(cost, A_eq=[list(sizes)], b_eq=[density * sum(sizes)], bounds=bounds)
    assert best.success
    assert sum(d * s for d, s in zip(found, sizes, strict=True)) == pytest.approx(
        density * sum(sizes), abs=1e-6
    )
    assert all(low - 1e-12 <= d <= high + 1e-12 for d, (low, high) in zip(found, bounds, strict=True))
    value = sum(c * d for c, d in zip(cost, found, strict=True))
    assert value == pytest.approx(best.fun, rel=1e-6, abs=1e-6 * max(1, sum(cost)))


def test_a_layer_that_repeats_another_is_redundant():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=g).double()
    w = torch.randn(5, 6, generator=g).double()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=g).double()).Q
    other = torch.randn(300, 6, generator=g).double()

    def layer(weight, inputs):
        s = Statistics(6, samples=256, dtype=torch.float64)
        s.add(inputs)
        return Seen(weight, s)

    measures = Redundancy().measure([layer(w, x), layer(3 * turn @ w, x), layer(w, other)])
    assert float((measures[0] * measures[1]).sum()) == pytest.approx(1.0)
    centred = [(a - a.mean(0)) for a in (x[:256] @ w.T, other[:256] @ w.T)]
    alignment = (centred[0].T @ centred[1]).norm() ** 2
    alignment /= (centred[0].T @ centred[0]).norm() * (centred[1].T @ centred[1]).norm()
    assert float((measures[0] * measures[2]).sum()) == pytest.approx(float(alignment))
    counts = Redundancy(reach=0.1).counts([(5, 6)] * 3, 45, measures)
    assert sum(counts) == 45
    assert counts[2] == 18 == max(counts)
    unseen = Seen(w, Statistics(6, samples=256, dtype=torch.float64))
    assert sum(Redundancy().counts([(5, 6)] * 2, 30, Redundancy().measure([unseen, layer(w, x)]))) == 30


def test_fluctuations_are_ranked_in_units_of_their_layer():
    """As the paper has it: standardise, sort all inputs of all layers together, and cut where the weights are spent."""
    g = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(out, 9, generator=g).double() * scale for out, scale in ((4, 1.0), (7, 1e3), (2, 1e-3))
    ]
    block = [seen(w, torch.randn(40, 9, generator=g).double() ** 3) for w in weights]
    ranked = []
    for i, layer in enumerate(block):
        score = layer.statistics.variance * layer.weight.square().sum(0)
        score = (score - score.mean()) / score.std(correction=0)
        ranked += [(-float(s), i) for s in score]
    for total in (0, 30, 60, 9 * 13):
        kept, spent = [0, 0, 0], 0
        for _, i in sorted(ranked):
            if spent + len(weights[i]) > total:
                break
            kept[i] += 1
            spent += len(weights[i])
        counts = Fluctuation().counts([tuple(w.shape) for w in weights], total, Fluctuation().measure(block))
        assert sum(counts) == total
        assert [c // len(w) for c, w in zip(counts, weights, strict=True)] == kept


@pytest.mark.parametrize("rule", [Redundancy(), Fluctuation()])
def test_a_walk_with_a_ranking_keeps_what_was_asked(rule):
    method = ow.FLAP if isinstance(rule, Fluctuation) else ow.Wanda
    found = ow.sparsify_(gpt(), method(sparsity=0.4, allocation=rule), data=windows())
    assert (
        abs(found.plan.kept - 0.6 * found.plan.numel) <= max(sum(r.shape[1:]) for r in found.plan.sparse) * 20
    )
    shares = {round(row.kept / row.numel, 6) for row in found.plan.sparse}
    assert len(shares) > 2
    assert sum(int(mask.sum()) for mask in found.masks.values()) == found.plan.kept
    with pytest.raises(ValueError, match="measures the layers of a trained network on data"):
        ow.plan(gpt(), method(allocation=rule))
