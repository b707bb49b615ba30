import pytest
import torch
import torch.nn.functional as F

from openwork.layouts.csr import CSR
from openwork.layouts.layout import layouts
from openwork.layouts.squares import BFloat16Squares, Int8Squares, Squares, fill
from openwork.patterns import pattern


def topology(rows: int, columns: int, spelling: str, density: float) -> CSR:
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0))
    return CSR.from_mask(pattern(spelling).choose(scores, round(density * rows * columns)))


@pytest.mark.parametrize("spelling", ["block 4x4", "block 8x8", "block 16x16", "block 32x32"])
@pytest.mark.parametrize("batch", [1, 5, 11])
def test_blocks_of_every_size_are_made_of_squares(spelling, batch):
    blocks = topology(64, 96, spelling, 1 / 3)
    assert fill(blocks) == 1.0
    values = torch.randn(blocks.kept)
    assert Squares.unsuited(blocks, values, batch) is None
    x, bias = torch.randn(batch, 96), torch.randn(64)
    y = Squares.build(blocks, values, batch).linear(x, bias, "relu")
    torch.testing.assert_close(y, F.linear(x, blocks.dense(values), bias).relu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", [BFloat16Squares, Int8Squares])
def test_rounded_weights(cls):
    blocks = topology(64, 96, "block 4x4", 1 / 3)
    values = torch.randn(blocks.kept)
    x = torch.randn(2, 96).bfloat16()
    y = cls.build(blocks, values, 2).compute(x, None, "none")
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), x.float() @ blocks.dense(values).T, rtol=3e-2, atol=0.2)


def test_it_says_what_does_not_suit_it():
    blocks = topology(64, 96, "block 4x4", 1 / 3)
    values = torch.randn(blocks.kept)
    assert "float64" in Squares.unsuited(blocks, values.double(), 1)
    assert "row blocks serve 12" in Squares.unsuited(blocks, values, 12)
    assert "no connections" in Squares.unsuited(CSR.from_mask(torch.zeros(8, 8).bool()), values[:0], 1)
    assert "dense kernels" in Squares.unsuited(CSR.from_mask(torch.ones(8, 8).bool()), torch.ones(64), 1)
    for other in ("unstructured", "block 4x1", "block 2x4"):
        mixed = topology(64, 96, other, 1 / 3)
        assert fill(mixed) < 0.9
        assert "blocks of 4 x 4" in Squares.unsuited(mixed, torch.ones(mixed.kept), 1)


def test_what_is_missing_in_a_square_is_counted():
    mask = topology(64, 96, "block 4x4", 1 / 3).mask()
    mask[mask.nonzero()[7].unbind()] = False
    one_missing = CSR.from_mask(mask)
    assert fill(one_missing) == one_missing.kept / (one_missing.kept + 1)


def test_it_is_on_the_shelf():
    assert Squares in layouts(torch.float32)
    assert BFloat16Squares not in layouts(torch.float32)
    assert Int8Squares in layouts(torch.int8)
