import pytest
import torch
import torch.nn.functional as F

from openwork.layouts.csr import CSR
from openwork.layouts.layout import layouts
from openwork.layouts.slices import Slices


def matrix(rows: int, columns: int, density: float) -> tuple[CSR, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * columns)
    topology = CSR.from_mask(torch.rand(rows, columns, generator=generator) < density)
    return topology, torch.randn(topology.kept, generator=generator)


@pytest.mark.parametrize(("rows", "columns", "density"), [(37, 50, 0.2), (16, 9, 1.0), (3, 200, 0.0)])
def test_it_computes_what_the_dense_matrix_does(rows, columns, density):
    topology, values = matrix(rows, columns, density)
    bias, x = torch.randn(rows), torch.randn(2, columns)
    y = Slices.build(topology, values, 1).linear(x, bias, "relu")
    torch.testing.assert_close(y, F.linear(x, topology.dense(values), bias).relu(), rtol=1e-5, atol=1e-5)


def test_its_bytes_are_those_of_six_a_nonzero_and_its_index():
    topology = CSR.from_mask(torch.eye(64).bool() | torch.eye(64).roll(1, 1).bool())
    assert Slices.build(topology, torch.ones(128), 1).nbytes == 128 * (4 + 2) + (4 + 1) * 8 + 64 * 4


def test_it_says_what_does_not_suit_it():
    topology, values = matrix(64, 80, 0.3)
    assert Slices.unsuited(topology, values, 1) is None
    assert "float64" in Slices.unsuited(topology, values.double(), 1)
    assert "more bytes" in Slices.unsuited(*matrix(20, 30, 0.9), 1)
    assert "one by one" in Slices.unsuited(topology, values, 3)
    one_long_row = torch.zeros(160, 5000, dtype=torch.bool)
    one_long_row[7] = True
    assert "filled up to" in Slices.unsuited(CSR.from_mask(one_long_row), torch.ones(5000), 1)


def test_it_is_on_the_shelf():
    assert Slices in layouts()
