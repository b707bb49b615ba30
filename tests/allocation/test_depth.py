"""What the first, the last and the deep layers are given."""

import pytest

from openwork.allocation import Pyramid, Uniform, UniformPlus
from tests.allocation.networks import CONVS, LENET, sizes


def test_pyramid_falls_with_depth():
    first, second, third = Pyramid().counts([(10, 100)] * 3, 300)
    assert first > second > third


def test_uniform_plus():
    total = round(0.1 * sum(sizes(CONVS)))
    counts = UniformPlus().counts(CONVS, total)
    assert counts[0] == 16 * 27  # the first convolution is dense
    assert counts[-1] == round(0.2 * 640)
    assert abs(counts[1] / (32 * 144) - counts[2] / (64 * 288)) < 1e-3
    assert sum(counts) == total
    assert UniformPlus().counts(LENET, 100_000) == Uniform().counts(
        LENET, 100_000
    )  # no convolution, not sparse
    with pytest.raises(ValueError, match="first and last layer alone"):
        UniformPlus().counts(CONVS, 400)
