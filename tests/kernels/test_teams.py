"""What is done to a topology by several threads is what one does: ties, empty shares and lists shorter than the team included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork import positions
from openwork.kernels import native, ranking, reference
from openwork.kernels.index import prepare
from openwork.kernels.topology import flat_positions, marked_positions, rewired
from tests.kernels.matrices import SIZES, SPARSITIES, random_matrix

TEAMS = (1, 2, 3, 8)


@pytest.fixture(params=TEAMS, autouse=True)
def team(request, monkeypatch):
    monkeypatch.setattr(native, "threads", lambda work: request.param)
    return request.param


def numbers(count, top, seed):
    return torch.randint(top, (count,), generator=torch.Generator().manual_seed(seed))


COUNTS = st.integers(0, 3000)
SEEDS = st.integers(0, 10**6)


@given(n=COUNTS, m=COUNTS, top=st.sampled_from([3, 500, 2**40]), seed=SEEDS)
def test_lists(n, m, top, seed):
    one, other = numbers(n, top, seed).sort().values, numbers(m, top, seed + 1).sort().values
    assert torch.equal(positions.ascending(numbers(n, top, seed)), one)
    assert torch.equal(positions.merged(one, other), torch.cat([one, other]).sort().values)
    for or_at in (False, True):
        expected = torch.searchsorted(one, other, right=or_at)
        assert torch.equal(positions.below(one, other, or_at=or_at), expected)
    index, found = positions.located(one, other)
    assert torch.equal(found, torch.isin(other, one))
    assert n == 0 or torch.equal(one[index[found]], other[found])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_what_belongs_to_positions_is_carried(dtype):
    old, new = numbers(2000, 5000, 0).unique(), numbers(2000, 5000, 1).unique()
    items = torch.arange(1, old.numel() + 1).to(dtype)
    dense = torch.zeros(5000, dtype=dtype)
    dense[old] = items
    assert torch.equal(positions.carried(items, positions.origins(old, new)), dense[new])


@given(
    rows=SIZES,
    columns=SIZES,
    sparsity=SPARSITIES,
    share=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
def test_a_topology_loses_and_gains_connections(rows, columns, sparsity, share, seed):
    made, _, _ = random_matrix(rows, columns, sparsity, seed)
    generator = torch.Generator().manual_seed(seed)
    old, stays = made.positions, torch.rand(made.kept, generator=generator) < share
    assert torch.equal(marked_positions(made.crow, made.col, columns, stays), old[stays])
    free = torch.ones(rows * columns, dtype=torch.bool)
    free[old[stays]] = False
    grown = (free & (torch.rand(rows * columns, generator=generator) < 1 - sparsity)).nonzero().flatten()
    crow, col, origin = rewired(made.crow, made.col, columns, stays, grown)
    new = flat_positions(crow, col, columns)
    assert torch.equal(new, positions.merged(old[stays], grown))
    assert origin.dtype is torch.int32
    assert torch.equal(origin.long(), positions.origins(old, new))


@given(n=st.integers(1, 3000), share=st.floats(0, 1), few=st.integers(1, 30), seed=SEEDS)
def test_free_places_by_rank(n, share, few, seed):
    taken = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share
    free = (~taken).nonzero().flatten()
    ranks = torch.arange(0, free.numel(), few)
    assert torch.equal(positions.free_places(taken.nonzero().flatten(), ranks), free[ranks])


@given(n=st.integers(1, 10**5), count=COUNTS, seed=SEEDS)
def test_a_set_of_numbers_comes_out_in_order(n, count, seed):
    marks, drawn = positions.Marks(n), [numbers(count, n, seed), numbers(5, n, seed + 1)]
    fresh = sum(marks.add(one) for one in drawn)
    assert torch.equal(marks.numbers(fresh), torch.cat(drawn).unique())


@given(n=st.integers(1, 400), m=COUNTS, scale=st.sampled_from([1e-300, 1e-3, 1.0, 1e200]), seed=SEEDS)
def test_ends_that_points_have_reached(n, m, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(n, generator=generator, dtype=torch.float64) * scale
    weights[::3] = 0.0
    ends = weights.cumsum(0)
    points = torch.cat(
        [torch.rand(m, generator=generator, dtype=torch.float64) * ends[-1], ends, ends[-1:] * 3]
    )
    assert torch.equal(positions.reached(ends, points), torch.searchsorted(ends, points, right=True))


@given(n=COUNTS, k=COUNTS, kinds=st.sampled_from([2, 50, 10**6]), seed=SEEDS, wide=st.booleans())
def test_the_largest(n, k, kinds, seed, wide):
    scores = numbers(n, kinds, seed).to(torch.float64 if wide else torch.float32) - kinds // 2
    assert torch.equal(ranking.largest(scores, min(k, n)), reference.largest(scores, min(k, n)))


@given(
    n=COUNTS,
    kinds=st.sampled_from([2, 50, 10**6]),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=SEEDS,
    wide=st.booleans(),
)
def test_those_farther_from_zero(n, kinds, shares, seed, wide):
    values = (numbers(n, kinds, seed) - kinds // 2).to(torch.float64 if wide else torch.float32) / kinds
    values = torch.where(values == 0, torch.where(numbers(n, 2, seed + 1) > 0, -0.0, 0.0), values)
    order = sorted(range(n), key=lambda i: abs(float(values[i])))  # stable: ties to the first
    negative = [i for i in order if values[i] < 0]
    others = [i for i in order if not values[i] < 0]
    drops = [int(share * len(side)) for share, side in zip(shares, (others, negative), strict=True)]
    expected = torch.ones(n, dtype=torch.bool)
    expected[others[: drops[0]] + negative[: drops[1]]] = False
    assert torch.equal(ranking.farther_from_zero(values, len(negative), *drops), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "enabled", lambda: False)
        assert torch.equal(ranking.farther_from_zero(values, len(negative), *drops), expected)


@given(n=st.integers(1, 20000), k=st.integers(1, 300), kinds=st.sampled_from([2, 10**6]), seed=SEEDS)
def test_the_best_places(n, k, kinds, seed):
    scores = numbers(n, kinds, seed).float()
    taken = numbers(n // 3, n, seed + 1).unique()
    free = scores.index_fill(0, taken, -torch.inf)
    expected = reference.largest(free, min(k, n - taken.numel())).nonzero().flatten()
    tiles = [(first, scores[first : first + 7001]) for first in range(0, n, 7001)]
    assert torch.equal(ranking.best(tiles, taken, min(k, n - taken.numel())), expected)


def test_no_thread_overlooks_a_score_that_is_not_finite():
    for place in (0, 5000, 9999):
        scores = torch.ones(10000)
        scores[place] = torch.nan
        with pytest.raises(FloatingPointError):
            ranking.best([(0, scores)], torch.tensor([place]), 3)


@given(rows=SIZES, columns=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_walks(rows, columns, sparsity, seed):
    made, _, _ = random_matrix(rows, columns, sparsity, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "threads", lambda work: 1)
        alone = prepare(made.crow, made.col, made.shape)
        expected = [*alone.walk, *alone.transposed]
    again = prepare(made.crow, made.col, made.shape)
    assert all(map(torch.equal, [*again.walk, *again.transposed], expected))
