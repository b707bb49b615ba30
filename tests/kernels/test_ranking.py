"""The largest of many scores, against a stable sort, and against the dense gradient that is never held whole."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import ranking, reference
from openwork.kernels.ranking import best, largest

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


def numbers(n, seed, dtype, kind):
    generator = torch.Generator().manual_seed(seed)
    if kind == "ties":
        return torch.randint(-2, 3, (n,), generator=generator).to(dtype)
    scores = torch.randn(n, generator=generator, dtype=torch.float64) * 10.0 ** torch.randint(
        -30, 30, (n,), generator=generator
    )
    if kind == "wild":
        odd = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0])
        where = torch.rand(n, generator=generator) < 0.3
        scores = torch.where(where, odd[torch.randint(5, (n,), generator=generator)].double(), scores)
    return scores.to(dtype)


@given(
    st.integers(1, 3000), st.integers(0, 99), DTYPES, st.sampled_from(["ties", "spread", "wild"]), st.data()
)
def test_the_largest_are_marked_ties_to_the_first(n, seed, dtype, kind, data):
    scores, k = numbers(n, seed, dtype, kind), data.draw(st.integers(0, n))
    chosen = largest(scores, k)
    assert torch.equal(chosen, reference.largest(scores, k))
    assert int(chosen.sum()) == k


@st.composite
def searches(draw):
    n, seed = draw(st.integers(1, 20000)), draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    scores = numbers(n, seed, torch.float32, draw(st.sampled_from(["ties", "spread"])))
    taken = (torch.rand(n, generator=generator) < draw(st.sampled_from([0, 0.3, 1]))).nonzero().flatten()
    sizes = draw(st.lists(st.integers(1, n), max_size=5)) or [n]
    return scores, taken, draw(st.integers(0, n - taken.numel())), sizes


@given(searches(), st.sampled_from([torch.float32, torch.float64]), st.sampled_from([1, 4096]))
def test_the_best_of_tiles_are_those_of_all(level, problem, dtype, room):
    scores, taken, k, sizes = problem
    scores = scores.to(dtype)
    bounds = sorted({0, scores.numel(), *(s for s in sizes)})
    tiles = [(low, scores[low:high]) for low, high in pairwise(bounds)]
    before = scores.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_ROOM", room)
        found = best(iter(tiles), taken, k)
    free = scores.index_fill(0, taken, -math.inf)
    assert torch.equal(found, reference.largest(free, k).nonzero().flatten())
    assert torch.equal(scores, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 17, 39])
def test_scores_that_are_not_finite_are_refused_taken_or_not(level, dtype, odd, at):
    scores = torch.ones(40, dtype=dtype)
    scores[at] = odd
    for taken in ([], [at]):
        with pytest.raises(FloatingPointError, match="NaN or infinity"):
            best([(0, scores[:20]), (20, scores[20:])], torch.tensor(taken, dtype=torch.int64), 3)


def test_a_search_holds_a_tile_and_twice_what_is_wanted():
    """However many places there are."""
    search = ranking._NativeSearch(5000, torch.empty(0))
    nothing = torch.empty(0, dtype=torch.int64)
    for first in range(0, 10**6, 10**4):
        search.see(first, torch.arange(first, first + 10**4, dtype=torch.float32), nothing)
    assert search.places().tolist() == list(range(10**6 - 5000, 10**6))
    assert len(search._places) <= 2 * 5000 + 2 * 10**4 + 100
