"""Which weights are row blocks, and that the layout computes them."""

import pytest
import torch
import torch.nn.functional as F

from openwork.layouts.csr import CSR
from openwork.layouts.layout import layouts
from openwork.layouts.row_blocks import BFloat16RowBlocks, Int8RowBlocks, RowBlocks, height


def topology(rows: int, columns: int, high: int, density: float, missing: float = 0.0) -> CSR:
    generator = torch.Generator().manual_seed(0)
    lists = torch.rand(-(-rows // high), columns, generator=generator) < density
    kept = torch.rand(rows, columns, generator=generator) >= missing
    return CSR.from_mask(lists.repeat_interleave(high, 0)[:rows] & kept)


@pytest.mark.parametrize("high", [2, 4, 8, 16])
@pytest.mark.parametrize("density", [0.05, 0.5])
@pytest.mark.parametrize("rows", [16, 320, 2053])
def test_the_highest_blocks_are_found(high, density, rows):
    assert height(topology(rows, 200, high, density)) == high
    assert height(topology(rows, 200, high, density, missing=0.04)) == high


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5])
def test_unstructured_rows_are_not_blocks(density):
    assert height(topology(512, 300, 1, density)) is None
    assert height(topology(512, 300, 4, density, missing=0.3)) is None


def test_dense_rows_are_blocks_and_missing_tenths_are_counted():
    mask = torch.ones(160, 10, dtype=torch.bool)
    assert height(CSR.from_mask(mask)) == 16
    mask[::16, :] = False  # 1 in 16
    assert height(CSR.from_mask(mask)) == 16
    mask[5::16, :] = False  # 2 in 16, or 2 in 8 in every other block
    assert height(CSR.from_mask(mask)) is None


def test_unsuited_says_why():
    blocks, values = topology(64, 50, 4, 0.3), torch.ones(topology(64, 50, 4, 0.3).kept)
    assert RowBlocks.unsuited(blocks, values, 64) is None
    assert RowBlocks.unsuited(blocks, values, 1) == "its rows do not share their columns in blocks of 16 rows"
    assert "not torch.float64 on cpu" in str(RowBlocks.unsuited(blocks, values.double(), 64))
    assert "no connections" in str(RowBlocks.unsuited(topology(8, 8, 4, 0.0), torch.ones(0), 64))
    whole = CSR.from_mask(torch.ones(32, 8, dtype=torch.bool))
    assert "keeps 1.00 of its connections" in str(RowBlocks.unsuited(whole, torch.ones(256), 64))
    with pytest.raises(ValueError, match="64 x 50 weight do not share"):
        RowBlocks.build(topology(64, 50, 1, 0.3), torch.ones(topology(64, 50, 1, 0.3).kept), 64)


@pytest.mark.parametrize("high", [2, 4, 8, 16])
@pytest.mark.parametrize("batch", [1, 5, 100])
def test_computes_the_layer(high, batch):
    held = topology(50, 70, high, 0.4)
    values, x, bias = torch.randn(held.kept), torch.randn(batch, 70), torch.randn(50)
    layout = RowBlocks.build(held, values, batch)
    expected = F.relu(F.linear(x, held.dense(values), bias))
    torch.testing.assert_close(layout.linear(x, bias, "relu"), expected, rtol=1e-5, atol=1e-5)
    assert layout.nbytes > values.nbytes
    assert RowBlocks in layouts()


@pytest.mark.parametrize("cls", [BFloat16RowBlocks, Int8RowBlocks])
def test_narrow_blocks_are_for_few_samples(cls):
    mask = torch.zeros(64, 40, dtype=torch.bool)
    mask[:, ::3] = True
    blocks = CSR.from_mask(mask)
    values = torch.randn(blocks.kept)
    assert cls.unsuited(blocks, values, 11) is None
    assert "fewer than 12" in cls.unsuited(blocks, values, 12)
    assert "blocks of 16 rows" in cls.unsuited(CSR.from_mask(torch.eye(64).bool()), torch.ones(64), 1)
    x = torch.randn(3, 40)
    y = cls.build(blocks, values, 3).linear(x, None, "none")
    torch.testing.assert_close(y, x @ blocks.dense(values).T, rtol=3e-2, atol=6e-2)
