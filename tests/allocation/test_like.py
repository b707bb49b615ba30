"""The split of masks that are there already."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.allocation import Like


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5), st.randoms())
def test_the_split_of_masks_is_found_again(shapes, random):
    masks = {
        str(i): torch.tensor([random.random() < 0.4 for _ in range(a * b)]).view(a, b)
        for i, (a, b) in enumerate(shapes)
    }
    counts = [int(mask.sum()) for mask in masks.values()]
    assert Like.of(masks).counts(shapes, sum(counts)) == counts


def test_another_total_keeps_the_proportions_until_a_layer_is_full():
    like = Like((0.5, 0.1, 0.0))
    assert like.counts([(4, 5), (10, 10), (2, 3)], 40) == [20, 20, 0]
    assert like.counts([(4, 5), (10, 10), (2, 3)], 10) == [5, 5, 0]
    with pytest.raises(ValueError, match="that of 3 parameters, and there are 1"):
        like.counts([(4, 5)], 2)
    with pytest.raises(ValueError, match="densities are fractions"):
        Like((1.5,))
