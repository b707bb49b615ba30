import pytest
import torch
import torch.nn.functional as F

from openwork.kernels import native
from openwork.layouts.bitmasked import Bitmasked
from openwork.layouts.layout import layouts
from tests.layouts.test_slices import matrix


@pytest.mark.parametrize("batch", [1, 2, 6, 13])
@pytest.mark.parametrize(("rows", "columns", "density"), [(37, 50, 0.4), (16, 9, 1.0), (3, 200, 0.0)])
def test_it_computes_what_the_dense_matrix_does(rows, columns, density, batch):
    topology, values = matrix(rows, columns, density)
    bias, x = torch.randn(rows), torch.randn(batch, columns)
    y = Bitmasked.build(topology, values, batch).linear(x, bias, "relu")
    torch.testing.assert_close(y, F.linear(x, topology.dense(values), bias).relu(), rtol=1e-5, atol=1e-5)


def test_its_bytes_are_a_bit_a_position_and_four_a_value():
    topology, values = matrix(64, 80, 0.3)
    assert Bitmasked.build(topology, values, 1).nbytes == 64 * 80 // 8 + (topology.kept + 16) * 4 + 17 * 8


def test_it_says_what_does_not_suit_it(monkeypatch):
    topology, values = matrix(64, 80, 0.3)
    monkeypatch.setattr(native, "isa", lambda: "avx512")
    assert Bitmasked.unsuited(topology, values, 6) is None
    assert "float64" in Bitmasked.unsuited(topology, values.double(), 1)
    assert "at most 6" in Bitmasked.unsuited(topology, values, 7)
    assert "moderate sparsity" in Bitmasked.unsuited(*matrix(64, 80, 0.02), 1)
    assert "moderate sparsity" in Bitmasked.unsuited(*matrix(64, 80, 1.0), 1)
    monkeypatch.setattr(native, "isa", lambda: "avx2")
    assert "at most 2" in Bitmasked.unsuited(topology, values, 3)
    monkeypatch.setattr(native, "isa", lambda: "portable")
    assert "no instruction" in Bitmasked.unsuited(topology, values, 6)


def test_it_is_on_the_shelf():
    assert Bitmasked in layouts()
