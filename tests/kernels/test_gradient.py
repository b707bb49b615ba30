import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import gradient, reference
from openwork.kernels.gradient import gradient_at, top_gradient
from tests.kernels.matrices import BATCHES, SIZES


@st.composite
def problems(draw):
    rows, columns, batch = draw(SIZES), draw(SIZES), draw(BATCHES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    # Small integers: the dense gradient is exact in any order, and full of ties.
    x, dy = (torch.randint(-2, 3, (batch, n), generator=generator).float() for n in (columns, rows))
    excluded = torch.nonzero(
        torch.rand(rows * columns, generator=generator) < draw(st.sampled_from([0, 0.3, 1]))
    ).view(-1)
    k = draw(st.integers(0, rows * columns - excluded.numel()))
    return x, dy, excluded, k


@given(problems(), st.sampled_from([1, 50, 2**20]))
def test_top_gradient_is_the_exact_stable_selection(problem, tile_entries):
    x, dy, excluded, k = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient, "_TILE_ENTRIES", tile_entries)
        assert torch.equal(top_gradient(x, dy, excluded, k), reference.top_gradient(x, dy, excluded, k))


@given(problems())
def test_gradient_at_positions_equals_the_dense_gradient(level, problem):
    x, dy, positions, _ = problem
    assert torch.equal(gradient_at(x, dy, positions), (dy.T @ x).flatten()[positions])


def test_nan_is_refused():
    x, dy = torch.ones(2, 3), torch.ones(2, 4)
    dy[0, 3] = float("nan")
    with pytest.raises(ValueError, match="has NaN"):
        top_gradient(x, dy, torch.empty(0, dtype=torch.int64), 1)


def test_errors_say_what_was_found():
    x, dy, some = torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 5])
    with pytest.raises(ValueError, match="10 of 4 x 3 are free"):
        top_gradient(x, dy, some, 11)
    with pytest.raises(ValueError, match="ascending"):
        top_gradient(x, dy, some.flip(0), 1)
    with pytest.raises(ValueError, match=r"0 \.\.\. 11"):
        gradient_at(x, dy, torch.tensor([12]))
    with pytest.raises(ValueError, match=r"found \[2, 3\] and \[3, 4\]"):
        gradient_at(x, torch.ones(3, 4), some)
