from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import native
from openwork.kernels.gradient import gradient_at, gradient_rows
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


@given(problem=problems(), cuts=st.lists(st.floats(0, 1), max_size=2), parts=st.integers(1, 3))
def test_rows_of_the_dense_gradient(level, problem, cuts, parts):
    x, dy, _ = problem
    edges = [0, *sorted(int(cut * dy.shape[1]) for cut in cuts), dy.shape[1]]
    pairs = [
        (x[part::parts], dy[part::parts]) for part in range(parts)
    ]  # strided, of several sizes, perhaps empty
    rows = [gradient_rows(pairs, first, last) for first, last in pairwise(edges)]
    assert torch.equal(torch.cat(rows), dy.T @ x)
    if x.shape[0]:
        assert torch.equal(
            gradient_rows([(x.double(), dy.double())], *edges[-2:]), (dy.T @ x)[edges[-2] :].double()
        )


def test_rows_have_the_same_bits_on_any_number_of_threads_and_in_any_tiles(level, monkeypatch):
    x, dy = torch.randn(300, 101), torch.randn(300, 45)
    once = gradient_rows([(x, dy)], 0, 45)
    torch.testing.assert_close(once.double(), dy.double().T @ x.double(), rtol=1e-4, atol=1e-4)
    for threads in (1, 2, 3, 5):
        monkeypatch.setattr(native, "threads", lambda _, threads=threads: threads)
        tiles = [gradient_rows([(x, dy)], first, min(first + 7, 45)) for first in range(0, 45, 7)]
        assert torch.equal(torch.cat(tiles), once)


def test_errors_say_what_was_found():
    x, dy, some = torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 5])
    with pytest.raises(ValueError, match="ascending"):
        gradient_at(x, dy, some.flip(0))
    with pytest.raises(ValueError, match=r"0 \.\.\. 11"):
        gradient_at(x, dy, torch.tensor([12]))
    with pytest.raises(ValueError, match=r"found \[2, 3\] and \[3, 4\]"):
        gradient_at(x, torch.ones(3, 4), some)
    with pytest.raises(ValueError, match="rows 2 to 5 are not among the 4"):
        gradient_rows([(x, dy)], 2, 5)
    with pytest.raises(ValueError, match=r"pairs must agree: a gradient 4 x 3 and one \(4, 4\)"):
        gradient_rows([(x, dy), (dy, dy)], 0, 4)
