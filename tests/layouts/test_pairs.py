import pytest
import torch
import torch.nn.functional as F

from openwork.kernels.pairs import available
from openwork.layouts.layout import layouts
from openwork.layouts.pairs import Pairs
from tests.layouts.test_slices import matrix


@pytest.mark.skipif(not available(), reason="this machine has no dot product of bfloat16")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_computes_what_the_rounded_dense_matrix_does(dtype):
    topology, values = matrix(37, 50, 0.4)
    bias, x = torch.randn(37).to(dtype), torch.randn(70, 50).to(dtype)
    y = Pairs.build(topology, values, 70).compute(x, bias, "relu")
    assert y.dtype is dtype
    expected = F.linear(
        x.bfloat16().double(), topology.dense(values).bfloat16().double(), bias.double()
    ).relu()
    torch.testing.assert_close(
        y.double(), expected, rtol=1e-5 if dtype is torch.float32 else 2**-8, atol=2e-3
    )


def test_it_says_what_does_not_suit_it(monkeypatch):
    topology, values = matrix(64, 80, 0.3)
    monkeypatch.setattr("openwork.kernels.pairs.available", lambda: True)
    assert Pairs.unsuited(topology, values, 64) is None
    assert Pairs.unsuited(topology, values.bfloat16(), 64) is None
    assert "float64" in Pairs.unsuited(topology, values.double(), 64)
    assert "batches of 16" in Pairs.unsuited(topology, values, 15)
    assert "65535 inputs" in Pairs.unsuited(*matrix(1, 65536, 0.0), 64)
    monkeypatch.setattr("openwork.kernels.pairs.available", lambda: False)
    assert "no instruction" in Pairs.unsuited(topology, values, 64)


def test_it_is_on_the_shelf_of_those_who_allow_rounding():
    assert Pairs in layouts(torch.bfloat16)
    assert Pairs not in layouts(torch.float32)
