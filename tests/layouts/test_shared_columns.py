"""When rows are worth sharing columns, and that the layout computes them."""

import torch
import torch.nn.functional as F

from openwork.layouts.csr import CSR
from openwork.layouts.layout import layouts
from openwork.layouts.shared_columns import SharedColumns


def topology(density: float, rows: int = 50) -> CSR:
    kept = round(density * rows * 70)
    return CSR.random((rows, 70), kept, torch.Generator().manual_seed(0))


def test_unsuited_says_why():
    half = topology(0.5)
    values = torch.ones(half.kept)
    assert SharedColumns.unsuited(half, values, 64) is None
    assert SharedColumns.unsuited(half, values, 15) == "it wants batches of 16 and more"
    assert "not torch.float16 on cpu" in str(SharedColumns.unsuited(half, values.half(), 64))
    for density in (0.1, 0.95):
        other = topology(density)
        assert f"not {density}" in str(SharedColumns.unsuited(other, torch.ones(other.kept), 64))
    few = topology(0.5, rows=3)
    assert "4 at a time" in str(SharedColumns.unsuited(few, torch.ones(few.kept), 64))


def test_computes_the_layer():
    half = topology(0.5)
    values, x, bias = torch.randn(half.kept), torch.randn(100, 70), torch.randn(50)
    layout = SharedColumns.build(half, values, 100)
    expected = F.silu(F.linear(x, half.dense(values), bias))
    torch.testing.assert_close(layout.linear(x, bias, "silu"), expected, rtol=1e-5, atol=1e-5)
    assert layout.nbytes > values.nbytes
    assert SharedColumns in layouts()
