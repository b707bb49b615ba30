"""Each rule looks at what its name says."""

import pytest
import torch

from openwork.growth import Gradient, Momentum, Random, growth
from tests.growth.sites import Here, flat, generator


def test_rules_look_at_what_they_say():
    site = Here(torch.tensor([5.0, 1.0, 4.0, 2.0]), flat(4))
    taken, vacant = torch.tensor([0]), torch.tensor([1])
    assert Gradient().places(site, taken, vacant, generator()).tolist() == [2]
    assert Momentum().places(site, taken, vacant, generator()).tolist() == [1]
    assert Random().places(site, taken, torch.tensor([3]), generator()).tolist() == [1, 2, 3]
    assert (Random().needs, Gradient().needs, Momentum().needs) == (set(), {"gradient"}, {"momentum"})


def test_names():
    assert growth("gradient") == Gradient()
    rule = Random()
    assert growth(rule) is rule
    with pytest.raises(ValueError, match="choose one of random, gradient, momentum"):
        growth("gradients")
