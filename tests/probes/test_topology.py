"""Graph measures: closed forms, other libraries, and what training and randomness do to them."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from openwork import SET, StaticRandom, attach, persistence, to_sparse_, topology
from openwork.probes.topology import (
    binomial,
    degrees,
    drift,
    effective_density,
    gini,
    jaccard,
    linked,
    log_paths,
    spectral_gap,
    tail_exponent,
)
from tests.train.runs import Run, net


def mask(shape, density, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def test_degrees_count_taps_and_links_do_not():
    m = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    m[0, 1] = True
    m[1, 2, 0, 1] = True
    outputs, inputs = degrees(m)
    assert outputs.tolist() == [4, 1]
    assert inputs.tolist() == [0, 4, 1]
    assert linked(m).tolist() == [[False, True, False], [False, False, True]]


@given(values=st.lists(st.integers(0, 20), min_size=1, max_size=12))
def test_gini_is_the_mean_difference(values):
    n, total = len(values), sum(values)
    expected = sum(abs(a - b) for a in values for b in values) / (2 * n * total) if total else 0.0
    assert gini(torch.tensor(values)) == pytest.approx(expected)


def test_binomial_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for n, p in ((7, 0.3), (300, 0.01), (5, 0.0), (5, 1.0)):
        assert binomial(n, p).tolist() == pytest.approx(
            stats.binom.pmf(range(n + 1), n, p).tolist(), abs=1e-12
        )


def test_random_degrees_do_not_drift_and_hubs_do():
    random = mask((2000, 300), 0.05)
    assert drift(degrees(random)[0], 300) < 0.06
    hubs = random.clone()
    hubs[:200] = mask((200, 300), 0.5, seed=1)
    assert drift(degrees(hubs)[0], 300) > 0.5
    assert gini(degrees(hubs)[0]) > 2 * gini(degrees(random)[0])
    assert drift(torch.full((9,), 4), 4) == 0.0


def test_the_exponent_of_a_power_law_is_found_again():
    g = torch.Generator().manual_seed(0)
    u = torch.rand(200_000, generator=g, dtype=torch.float64)
    degrees = (3.5 * (1 - u) ** (-1 / 1.4) + 0.5).floor().long()
    assert tail_exponent(degrees, 4) == pytest.approx(2.4, rel=0.05)
    assert tail_exponent(torch.tensor([1, 2]), 4) == math.inf
    with pytest.raises(ValueError, match="least=0"):
        tail_exponent(degrees, 0)


@given(widths=st.lists(st.integers(1, 9), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_paths_and_effective_connections_by_counting(widths, seed):
    layers = [mask((b, a), 0.5, seed + i) for i, (a, b) in enumerate(pairwise(widths))]
    ways = [1] * widths[0]
    for layer in layers:
        ways = [sum(w for w, there in zip(ways, row, strict=True) if there) for row in layer.tolist()]
    assert log_paths(layers) == pytest.approx(math.log(sum(ways)) if sum(ways) else -math.inf)
    for i, effective in enumerate(effective_density(layers)):
        on_path = 0
        for place in layers[i].nonzero().tolist():
            alone = torch.zeros_like(layers[i])
            alone[tuple(place)] = True
            on_path += log_paths([*layers[:i], alone, *layers[i + 1 :]]) > -math.inf
        assert effective * layers[i].numel() == pytest.approx(on_path)


def test_a_dense_perceptron_has_the_product_of_its_widths():
    layers = [torch.ones(b, a, dtype=torch.bool) for a, b in ((7, 90), (90, 50), (50, 3))]
    assert log_paths(layers * 1) == pytest.approx(math.log(7 * 90 * 50 * 3))
    assert effective_density(layers) == [1.0, 1.0, 1.0]
    deep = [torch.ones(500, 500, dtype=torch.bool)] * 300
    assert log_paths(deep) == pytest.approx(301 * math.log(500))


def test_a_part_of_an_extremely_sparse_random_network_does_nothing_and_repair_mends_it():
    sizes = [200, 200, 200, 200]
    nets = {}
    for repair in (False, True):
        model = net(sizes)
        method = StaticRandom(sparsity=0.988, repair=repair, allocation="uniform", steps=1)
        nets[repair] = list(attach(model, None, method).masks.values())
    plain, mended = (
        sum(d * m.numel() for d, m in zip(effective_density(nets[r]), nets[r], strict=True))
        for r in (False, True)
    )
    asked = sum(int(m.sum()) for m in nets[False])
    assert plain < 0.9 * asked
    assert mended == pytest.approx(asked)


def test_expansion():
    assert spectral_gap(torch.ones(5, 7, dtype=torch.bool)) == pytest.approx(1.0)
    parts = torch.block_diag(torch.ones(3, 2), torch.ones(2, 4)).bool()
    assert spectral_gap(parts) == pytest.approx(0.0, abs=1e-12)
    assert 0.1 < spectral_gap(mask((60, 60), 0.2)) < 0.9


def test_similarity_of_masks():
    one = torch.tensor([True, True, False, False])
    assert jaccard(one, torch.tensor([True, False, True, False])) == pytest.approx(1 / 3)
    assert jaccard(one, one) == jaccard(~one & one, ~one & one) == 1.0


def test_it_reads_a_model_however_it_is_stored():
    model, stored = net(), net()
    method = SET(sparsity=0.8, steps=5)
    attach(model, None, method)
    to_sparse_(stored, method)
    assert topology(model) == topology(stored)
    assert [w.name for w in topology(model)] == ["0.weight", "2.weight", "4.weight"]
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert [w.name for w in topology(conv)] == ["0.weight"]


def test_set_drifts_from_random():
    run = Run(SET(sparsity=0.8, steps=400, every=5), net((40, 60, 5)), lr=0.2)
    before = run.sparsifier.masks["0.weight"].clone()
    run.step(400)
    after = run.sparsifier.masks["0.weight"]
    assert gini(degrees(after)[0]) > 1.15 * gini(degrees(before)[0])


def graph(edges, outputs=3, inputs=3):
    weight = torch.zeros(outputs, inputs)
    for i, j in edges:
        weight[i, j] = 1.0
    return weight


def test_betti_numbers_satisfy_eulers_formula():
    p = persistence(torch.randn(9, 13, generator=torch.Generator().manual_seed(0)) * mask((9, 13), 0.4))
    drawn = torch.arange(1, len(p.levels) + 1)
    assert torch.equal(p.parts - p.cycles, p.units - drawn)
    assert len(p.lifetimes) == p.units - int(p.parts[-1])
    assert bool((p.levels[:-1] >= p.levels[1:]).all())
    assert float(p.levels[0]) == 1.0


def test_lifetimes_are_those_of_the_maximum_spanning_forest():
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    weight = torch.rand(8, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = torch.zeros(19, 19, dtype=torch.float64)
    whole[:8, 8:] = 2 - weight / weight.max()
    forest = csgraph.minimum_spanning_tree(whole.numpy()).data - 1
    assert sorted(persistence(weight).lifetimes.tolist()) == pytest.approx(sorted(forest.tolist()))
    assert persistence(weight).neural == pytest.approx(float((forest**2).sum() ** 0.5 / 18**0.5))


def test_two_squares_are_not_an_octagon():
    squares = graph([(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3)], 4, 4)
    octagon = graph([(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 0)], 4, 4)
    one, other = persistence(squares), persistence(octagon)
    assert (int(one.parts[-1]), int(one.cycles[-1])) == (2, 2)
    assert (int(other.parts[-1]), int(other.cycles[-1])) == (1, 1)


def test_idle_units_and_scale():
    weight = graph([(0, 0)])
    assert persistence(weight).units == 2
    assert persistence(weight, idle=True).units == 6
    full = torch.rand(5, 4, generator=torch.Generator().manual_seed(2))
    assert persistence(full).neural == pytest.approx(persistence(-8 * full).neural)
    empty = persistence(torch.zeros(2, 2))
    assert (empty.units, empty.neural, len(empty.levels)) == (0, 0.0, 0)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="follow one another"):
        log_paths([torch.ones(3, 2), torch.ones(2, 4)])
    with pytest.raises(ValueError, match="at least one layer"):
        effective_density([])
    with pytest.raises(ValueError, match="matrix"):
        persistence(torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match="NaN"):
        persistence(torch.tensor([[math.nan]]))
