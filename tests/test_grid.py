"""The exact choice among competitors, against a stable sort by Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.grid import top_k

few = settings(max_examples=30)
FLOATS = [torch.float64, torch.float32, torch.bfloat16]
values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, math.inf, -math.inf, math.nan])


def best(scores, k):
    """Places of the k largest, ties to the first, NaN lowest: what top_k must mark."""
    ranked = [-math.inf if math.isnan(s) else s for s in scores]
    return set(sorted(range(len(ranked)), key=lambda i: (-ranked[i], i))[:k])


@few
@given(
    st.lists(st.lists(values, min_size=7, max_size=7), min_size=1, max_size=4),
    st.integers(0, 7),
    st.sampled_from(FLOATS),
)
def test_top_k_is_the_stable_sort(rows, k, dtype):
    scores = torch.tensor(rows, dtype=dtype)
    for row, mask in zip(rows, top_k(scores, k), strict=True):
        assert set(mask.nonzero().flatten().tolist()) == best(row, k)
        assert torch.equal(top_k(torch.tensor(row, dtype=dtype), k), mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int32, torch.int64])
def test_top_k_of_every_dtype(dtype):
    scores = torch.tensor([3, 1, 3, 2, 3], dtype=dtype)
    assert top_k(scores, 2).tolist() == [True, False, True, False, False]
    assert top_k(scores, 4).tolist() == [True, False, True, True, True]


def test_top_k_leaves_its_input_alone():
    scores = torch.tensor([math.nan, 1.0, 2.0])
    top_k(scores, 1)
    assert scores.isnan().tolist() == [True, False, False]


def test_top_k_of_nothing():
    assert top_k(torch.empty(0), 0).tolist() == []
    assert top_k(torch.empty(0, 4), 2).shape == (0, 4)


@pytest.mark.parametrize("k", [-1, 4])
def test_top_k_refuses_impossible_counts(k):
    with pytest.raises(ValueError, match=f"cannot keep {k} of 3"):
        top_k(torch.zeros(3), k)
