"""Growth against brute force: which places are free, and which of them are best."""

import collections
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.graphs import ch3_l3
from openwork.grid import Grid
from openwork.growth import (
    CH3L3,
    Gradient,
    Momentum,
    Random,
    best_free,
    distinct,
    drawn,
    free_at_random,
    growth,
    random_places,
    scores_at,
)
from openwork.patterns import FanIn, Unstructured


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(n):
    return Unstructured().grid((n,))


def sorted_places(data, n, count):
    return torch.tensor(sorted(data.draw(st.permutations(range(n)))[:count]), dtype=torch.int64)


@settings(max_examples=40)
@given(st.data(), st.integers(1, 40), st.integers(1, 9))
def test_the_best_free_places_of_one_row_whatever_the_tiles(data, n, tile):
    taken = sorted_places(data, n, data.draw(st.integers(0, n)))
    k = data.draw(st.integers(0, n - len(taken)))
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), dtype=torch.float32)
    tiles = [(i, scores[i : i + tile]) for i in range(0, n, tile)]
    got = best_free(tiles, taken, torch.tensor([k]), flat(n))
    free = [i for i in range(n) if i not in set(taken.tolist())]
    assert got.tolist() == sorted(sorted(free, key=lambda i: (-scores[i].item(), i))[:k])


@settings(max_examples=30)
@given(st.data(), st.integers(1, 5), st.integers(1, 7), st.integers(1, 3))
def test_the_best_free_places_of_every_row(data, rows, competitors, at_once):
    grid = FanIn().grid((rows, competitors))
    n = rows * competitors
    taken = sorted_places(data, n, data.draw(st.integers(0, n)))
    rooms = competitors - torch.bincount(taken // competitors, minlength=rows)
    vacant = torch.tensor([data.draw(st.integers(0, int(r))) for r in rooms])
    scores = torch.tensor(
        data.draw(st.lists(st.integers(-2, 2), min_size=n, max_size=n)), dtype=torch.float64
    )
    step = at_once * competitors
    tiles = [(i, scores[i : i + step]) for i in range(0, n, step)]
    kept = scores.clone()
    got = best_free(tiles, taken, vacant, grid)
    expected = []
    for row in range(rows):
        own = range(row * competitors, (row + 1) * competitors)
        free = [i for i in own if i not in set(taken.tolist())]
        expected += sorted(sorted(free, key=lambda i: (-scores[i].item(), i))[: int(vacant[row])])
    assert got.tolist() == expected
    assert torch.equal(scores, kept)
    drawn = random_places(grid, taken, vacant, generator())
    assert not set(drawn.tolist()) & set(taken.tolist())
    assert torch.equal(torch.bincount(drawn // competitors, minlength=rows), vacant)
    assert drawn.tolist() == sorted(set(drawn.tolist()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    scores = torch.tensor([1.0, bad, 2.0])
    for grid in (flat(3), FanIn().grid((1, 3)), FanIn().grid((3, 1))):
        with pytest.raises(FloatingPointError, match="NaN or infinity"):
            best_free([(0, scores)], torch.tensor([1]), torch.ones(grid.rows, dtype=torch.int64), grid)


@settings(max_examples=40)
@given(st.data(), st.integers(1, 60), st.integers(0, 2**32))
def test_random_places_are_free_and_distinct(data, n, seed):
    taken = sorted_places(data, n, data.draw(st.integers(0, n)))
    k = data.draw(st.integers(0, n - len(taken)))
    got = free_at_random(taken, n, k, generator(seed)).tolist()
    assert len(got) == k
    assert got == sorted(set(got))
    assert not set(got) & set(taken.tolist())
    assert all(0 <= place < n for place in got)


def test_every_set_is_equally_likely():
    """All 10 pairs of 5 free places, both where k is small and where a permutation is drawn."""
    for taken, places, k in (([1, 4], 7, 2), ([0], 6, 2), ([2, 3], 13, 2)):
        free = [i for i in range(places) if i not in taken]
        pairs = list(itertools.combinations(free, k))
        g = generator(7)
        draws = 300 * len(pairs)
        counts = collections.Counter(
            tuple(free_at_random(torch.tensor(taken), places, k, g).tolist()) for _ in range(draws)
        )
        assert set(counts) == set(pairs)
        chi = sum((counts[p] - 300) ** 2 / 300 for p in pairs)
        assert chi < len(pairs) + 6 * (2 * len(pairs)) ** 0.5


def test_distinct_needs_no_memory_for_what_is_not_drawn():
    drawn = distinct(10**15, 1000, generator())
    assert drawn.unique().numel() == 1000
    assert bool((drawn[1:] > drawn[:-1]).all())
    assert int(drawn.max()) > 10**14


def test_too_many_places_are_refused():
    with pytest.raises(ValueError, match="cannot grow 3 connections where 2 of 4"):
        free_at_random(torch.tensor([0, 1]), 4, 3, generator())


class Here:
    """A site with known scores."""

    def __init__(self, scores, grid: Grid):
        self.scores, self.grid, self.device = scores, grid, scores.device

    def gradient_tiles(self):
        yield 0, self.scores

    def momentum_tiles(self):
        yield 0, -self.scores + self.scores.max()


def test_rules_look_at_what_they_say():
    site = Here(torch.tensor([5.0, 1.0, 4.0, 2.0]), flat(4))
    taken, vacant = torch.tensor([0]), torch.tensor([1])
    assert Gradient().places(site, taken, vacant, generator()).tolist() == [2]
    assert Momentum().places(site, taken, vacant, generator()).tolist() == [1]
    assert Random().places(site, taken, torch.tensor([3]), generator()).tolist() == [1, 2, 3]
    assert (Random().needs, Gradient().needs, Momentum().needs) == (set(), {"gradient"}, {"momentum"})


def test_names():
    assert growth("gradient") == Gradient()
    rule = Random()
    assert growth(rule) is rule
    with pytest.raises(ValueError, match="choose one of random, gradient, momentum"):
        growth("gradients")


class Graph:
    """A site that has nothing but a graph."""

    device = torch.device("cpu")

    def __init__(self, outputs, inputs):
        self.grid = Unstructured().grid((outputs, inputs))


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(1, 9), st.floats(0, 1), st.integers(0, 99), st.data())
def test_links_are_predicted_from_the_graph_alone(outputs, inputs, density, seed, data):
    adjacency = torch.rand(outputs, inputs, generator=generator(seed)) < density
    taken = adjacency.flatten().nonzero().flatten()
    k = data.draw(st.integers(0, outputs * inputs - taken.numel()))
    scores = ch3_l3(adjacency)
    for soft in (True, False):
        grown = CH3L3(soft).places(Graph(outputs, inputs), taken, torch.tensor([k]), generator(seed))
        chosen = torch.zeros_like(adjacency)
        chosen.view(-1)[grown] = True
        assert grown.tolist() == sorted(set(grown.tolist()))
        assert int(chosen.sum()) == k
        assert not (chosen & adjacency).any()
        if k and k < int((~adjacency).sum()):
            left = scores[~chosen & ~adjacency]
            if soft:  # what has no score comes last
                assert not (scores[chosen] == 0).any() or (left == 0).all()
            else:
                assert scores[chosen].min() >= left.max() - 1e-12


def test_a_complete_graph_has_no_place_to_grow():
    taken = torch.arange(12)
    assert CH3L3().places(Graph(3, 4), taken, torch.tensor([0]), generator()).numel() == 0


def test_draws_are_proportional_to_the_weights():
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0])
    g = generator(4)
    first = collections.Counter(int(drawn(weights, g).argmax()) for _ in range(4000))
    assert first[1] == 0
    for i in (0, 2, 3):
        assert abs(first[i] / 4000 - weights[i].item() / 8) < 0.03


def test_scores_at_some_places_whatever_the_tiles():
    scores = torch.rand(23, generator=generator(2))
    places = torch.tensor([0, 4, 5, 11, 22])
    for tile in (1, 5, 23):
        tiles = [(i, scores[i : i + tile]) for i in range(0, 23, tile)]
        assert torch.equal(scores_at(tiles, places), scores[places])
