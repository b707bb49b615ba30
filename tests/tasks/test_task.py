"""Splits that never mix, and numbers that do not depend on the machine."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.tasks.task import Split, cut, standardized


@given(n=st.integers(2, 200), data=st.data(), seed=st.integers(0, 5))
def test_a_cut_parts_every_example_once_and_keeps_the_order(n, data, seed):
    part = data.draw(st.integers(1, n - 1))
    whole = Split(torch.arange(n).view(n, 1), torch.arange(n) * 3)
    rest, taken = cut(whole, part, seed)
    assert (len(rest), len(taken)) == (n - part, part)
    for split in (rest, taken):
        assert torch.equal(split.inputs.flatten(), split.inputs.flatten().sort().values)
        assert torch.equal(split.targets, split.inputs.flatten() * 3)
    together = torch.cat([rest.inputs, taken.inputs]).flatten()
    assert torch.equal(together.sort().values, torch.arange(n))


def test_another_seed_cuts_elsewhere_and_the_same_one_does_not():
    whole = Split(torch.arange(100), torch.arange(100))
    assert torch.equal(cut(whole, 30, 7)[1].inputs, cut(whole, 30, 7)[1].inputs)
    assert not torch.equal(cut(whole, 30, 7)[1].inputs, cut(whole, 30, 8)[1].inputs)


@pytest.mark.parametrize("part", [0, 5, 6, -1])
def test_a_cut_must_leave_something(part):
    with pytest.raises(ValueError, match="1 to 4"):
        cut(Split(torch.arange(5), torch.arange(5)), part)


def test_inputs_and_targets_must_be_as_many():
    with pytest.raises(ValueError, match="3 inputs has 2"):
        Split(torch.zeros(3), torch.zeros(2))


def test_standardized_equals_the_formula_and_leaves_its_input_alone():
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(0, 256, (37, 3, 5, 4), generator=generator, dtype=torch.uint8)
    other = torch.randint(0, 256, (4, 3, 5, 4), generator=generator, dtype=torch.uint8)
    before = train.clone()
    x, y = standardized(train, other)
    exact = train.double()
    mean, scale = exact.mean((0, 2, 3), keepdim=True), exact.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(x, ((exact - mean) / scale).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y, ((other.double() - mean) / scale).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(train, before)
