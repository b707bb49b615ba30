"""Condensed weights are the same weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from openwork import Condensed, SparseLinear
from openwork.patterns import FanIn


@given(out=st.integers(1, 9), inputs=st.integers(1, 12), data=st.data(), stored=st.booleans())
def test_it_is_the_weight_again(out, inputs, data, stored):
    fan_in = data.draw(st.integers(0, inputs))
    idle = data.draw(st.lists(st.booleans(), min_size=out, max_size=out))
    seed = data.draw(st.integers(0, 99))
    g = torch.Generator().manual_seed(seed)
    mask = FanIn(fan_in).choose(torch.rand(out, inputs, generator=g), 0)
    mask[torch.tensor(idle)] = False
    linear = nn.Linear(inputs, out)
    with torch.no_grad():
        linear.weight *= mask
        linear.weight.view(-1)[mask.flatten().nonzero()[:1]] = 0.0  # a kept connection may be zero
    layer = SparseLinear.from_linear(linear, mask) if stored else linear
    condensed = Condensed.of(layer, None if stored else mask)
    working = int(mask.any(1).sum())
    assert condensed.values.shape == (working, fan_in if working else 0)
    assert torch.equal(condensed.dense(), linear.weight)
    assert condensed.nbytes == working * 8 + condensed.values.numel() * 8
    assert bool((condensed.inputs.diff(dim=1) > 0).all())
    x = torch.randn(2, 3, inputs, generator=g)
    torch.testing.assert_close(condensed.linear(x, linear.bias), linear(x))


def test_units_that_differ_are_refused():
    mask = torch.tensor([[True, False, True], [True, False, False]])
    with pytest.raises(ValueError, match="between 1 and 2 inputs"):
        Condensed.of(nn.Linear(3, 2), mask)
