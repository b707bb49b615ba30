"""The best free places against brute force, whatever the tiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.growth import best_free, random_places, scores_at
from openwork.patterns import FanIn
from tests.growth.sites import flat, generator, sorted_places


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


def test_scores_at_some_places_whatever_the_tiles():
    scores = torch.rand(23, generator=generator(2))
    places = torch.tensor([0, 4, 5, 11, 22])
    for tile in (1, 5, 23):
        tiles = [(i, scores[i : i + tile]) for i in range(0, 23, tile)]
        assert torch.equal(scores_at(tiles, places), scores[places])
