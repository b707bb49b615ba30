import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels.gradient import gradient_at
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
    return x, dy, excluded


@given(problems())
def test_gradient_at_positions_equals_the_dense_gradient(level, problem):
    x, dy, positions = problem
    assert torch.equal(gradient_at(x, dy, positions), (dy.T @ x).flatten()[positions])


def test_errors_say_what_was_found():
    x, dy, some = torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 5])
    with pytest.raises(ValueError, match="ascending"):
        gradient_at(x, dy, some.flip(0))
    with pytest.raises(ValueError, match=r"0 \.\.\. 11"):
        gradient_at(x, dy, torch.tensor([12]))
    with pytest.raises(ValueError, match=r"found \[2, 3\] and \[3, 4\]"):
        gradient_at(x, torch.ones(3, 4), some)
