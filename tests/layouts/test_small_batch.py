import pytest
import torch
import torch.nn.functional as F

from openwork.layouts.csr import CSR
from openwork.layouts.layout import layouts
from openwork.layouts.small_batch import Octets
from tests.layouts.test_slices import matrix


@pytest.mark.parametrize("batch", [1, 2, 5, 16, 33])
@pytest.mark.parametrize(("rows", "columns", "density"), [(37, 50, 0.2), (16, 9, 1.0), (3, 200, 0.0)])
def test_it_computes_what_the_dense_matrix_does(rows, columns, density, batch):
    topology, values = matrix(rows, columns, density)
    bias, x = torch.randn(rows), torch.randn(batch, columns)
    y = Octets.build(topology, values, batch).linear(x, bias, "relu")
    torch.testing.assert_close(y, F.linear(x, topology.dense(values), bias).relu(), rtol=1e-5, atol=1e-5)


def test_its_bytes_are_those_of_whole_octets_and_row_ends():
    mask = torch.zeros(3, 20, dtype=torch.bool)
    mask[0, :9] = True  # two octets
    mask[2, :8] = True  # one
    assert Octets.build(CSR.from_mask(mask), torch.ones(17), 4).nbytes == 3 * 8 * (4 + 2) + 4 * 8


def test_it_says_what_does_not_suit_it():
    topology, values = matrix(64, 80, 0.3)
    assert Octets.unsuited(topology, values, 16) is None
    assert "float16" in Octets.unsuited(topology, values.half(), 1)
    assert "more bytes" in Octets.unsuited(*matrix(20, 30, 0.9), 1)
    assert "at most 16" in Octets.unsuited(topology, values, 17)


def test_it_is_on_the_shelf():
    assert Octets in layouts()
