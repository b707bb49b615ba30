"""What a run is made of: all of it is seen, and nothing of it changed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from openwork.operations import ELEMENTWISE, HOMOGENEOUS, Operations, keeps_channels, tensors_in


class Seen(Operations):
    def __init__(self, module):
        super().__init__({id(p): name for name, p in module.named_parameters()})
        self.functions = []

    def note(self, func, tensors, results):
        self.functions.append((func, self.parameters_among(tensors), len(tensors), len(results)))


def test_every_operation_and_every_use_of_a_parameter_is_seen():
    layer = nn.Linear(3, 5)
    x = torch.randn(2, 3)
    plain = torch.cat([layer(x), layer(x).relu()]).chunk(2)
    with torch.no_grad(), Seen(layer) as seen:
        found = torch.cat([layer(x), layer(x).relu()]).chunk(2)
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert [(f.__name__, own, *counts) for f, own, *counts in seen.functions] == [
        ("linear", [layer.weight, layer.bias], 3, 1),
        ("linear", [layer.weight, layer.bias], 3, 1),
        ("relu", [], 1, 1),
        ("cat", [], 2, 1),
        ("chunk", [], 1, 2),
    ]
    assert seen.uses == {id(layer.weight): 2, id(layer.bias): 2}


@given(st.floats(1e-3, 1e3))
def test_a_positive_scale_passes_what_is_called_homogeneous(s):
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for f in HOMOGENEOUS & {torch.relu, torch.Tensor.relu, torch.Tensor.clone, torch.Tensor.contiguous}:
        torch.testing.assert_close(f(s * x), s * f(x))


@pytest.mark.parametrize(
    "f",
    [
        *(torch.relu, torch.tanh, torch.sigmoid, torch.square, torch.erf, torch.exp, torch.neg),
        *(F.gelu, F.silu, F.elu, F.leaky_relu, F.relu6, F.hardswish, F.mish, F.softplus),
    ],
)
def test_an_order_passes_what_is_called_elementwise(f):
    assert f in ELEMENTWISE
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(f(x[order]), f(x)[order])


def test_channels_stay_where_the_last_axis_does():
    x = torch.zeros(2, 3, 4)
    assert keeps_channels(torch.reshape, x, torch.reshape(x, (6, 4)))
    assert not keeps_channels(torch.reshape, x, torch.reshape(x, (2, 12)))
    assert not keeps_channels(torch.transpose, x, x)


def test_tensors_are_found_wherever_they_are():
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert tensors_in([a, {"k": (b, 3, None)}, "text", [c]]) == [a, b, c]
