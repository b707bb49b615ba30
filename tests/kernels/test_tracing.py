"""Called directly, a kernel skips the dispatcher; whoever records operators still sees them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from openwork.kernels.bitmasked import bitmask_rows
from openwork.kernels.frozen import freeze, frozen_linear
from openwork.kernels.row_blocks import row_blocks
from openwork.kernels.slices import slice_rows
from openwork.kernels.small_batch import octet_rows
from openwork.kernels.squares import square_rows
from tests.kernels.matrices import random_matrix

PREPARED, VALUES, DENSE = random_matrix(16, 12, 0.5, 1)
CSR = VALUES, PREPARED.crow, PREPARED.col, PREPARED.shape
CALLS = {
    "sliced_linear": lambda x: slice_rows(*CSR).linear(x),
    "small_batch_linear": lambda x: octet_rows(*CSR).linear(x),
    "bitmasked_linear": lambda x: bitmask_rows(*CSR).linear(x),
    "squares_linear": lambda x: square_rows(*CSR).linear(x),
    "frozen_linear": lambda x: frozen_linear(x, freeze(VALUES, PREPARED)),
    "grouped_linear": lambda x: row_blocks(PREPARED.crow, PREPARED.col, VALUES, PREPARED.shape, 4).linear(x),
}


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_a_mode_sees_the_operator(name):
    x = torch.randn(3, 12)
    with Seen() as seen:
        y = CALLS[name](x)
    assert f"openwork::{name}" in seen.names
    assert torch.equal(y, CALLS[name](x))


@pytest.mark.parametrize("name", CALLS)
def test_a_direct_call_does_not_go_through_it(name, monkeypatch):
    x = torch.randn(3, 12)
    expected = CALLS[name](x)
    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.openwork, name, None)
        assert torch.equal(CALLS[name](x), expected)
    torch.testing.assert_close(expected, x @ DENSE.T)
