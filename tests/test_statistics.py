"""Statistics do not depend on how the tokens are split, and are those of all tokens together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.statistics import Statistics


def drawn(seed, tokens, inputs):
    g = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-2, 2, inputs, dtype=torch.float64)
    return torch.randn(tokens, inputs, generator=g, dtype=torch.float64) * scale + 3.0


def collected(parts, inputs, **options):
    s = Statistics(inputs, gram=True, dtype=torch.float64, **options)
    for part in parts:
        s.add(part)
    return s


def same(s, x):
    torch.testing.assert_close(s.gram, x.T @ x)
    torch.testing.assert_close(s.mean, x.mean(0))
    torch.testing.assert_close(s.variance, x.var(0, correction=0))
    torch.testing.assert_close(s.squares, x.square().sum(0))
    torch.testing.assert_close(s.squares, s.gram.diagonal())
    torch.testing.assert_close(s.absolute, x.abs().sum(0))
    assert torch.equal(s.maximum, x.abs().amax(0))
    assert s.count == len(x)


@settings(max_examples=25)
@given(st.integers(0, 999), st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_any_split_gives_the_statistics_of_all_tokens(seed, sizes, inputs):
    if not sum(sizes):
        sizes = [*sizes, 1]
    x = drawn(seed, sum(sizes), inputs)
    same(collected(x.split(sizes), inputs), x)


@settings(max_examples=25)
@given(st.integers(0, 999), st.integers(0, 7), st.integers(1, 7))
def test_merging_is_adding(seed, first, second):
    x = drawn(seed, first + second, 4)
    one, other = collected([x[:first]], 4), collected([x[first:]], 4)
    one.merge(other)
    same(one, x)
    assert other.count == second


def test_the_spread_between_batches_counts():
    """Two constant batches with different values have variance, though each has none."""
    s = collected([torch.zeros(3, 1).double(), torch.full((3, 1), 2.0).double()], 1)
    assert s.variance.item() == 1.0


def test_low_precision_is_summed_in_float32():
    """Squares of float16 inputs overflow float16."""
    s = Statistics(2, gram=True)
    s.add(torch.full((10, 2), 300.0, dtype=torch.float16))
    assert s.gram.dtype == torch.float32
    assert s.gram[0, 1].item() == 900000.0


def test_samples_are_the_first_tokens():
    x = drawn(0, 9, 3)
    s = collected(x.split(2), 3, samples=5)
    assert torch.equal(s.samples, x[:5])


def test_what_was_not_collected_is_not_there():
    with pytest.raises(ValueError, match="needs = "):
        _ = Statistics(3).gram


def test_once_is_once_until_there_are_more_tokens():
    s, made = Statistics(2), []
    for _ in range(2):
        s.once("key", lambda: made.append(1))
    assert made == [1]
    s.add(torch.ones(1, 2))
    s.once("key", lambda: made.append(2))
    assert made == [1, 2]
