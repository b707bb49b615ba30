"""Bits against a definition written out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.layouts.bitmask import pack, unpack


@given(st.integers(0, 5), st.integers(0, 27), st.integers(0, 99))
def test_round_trip_and_definition(rows: int, columns: int, seed: int) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.4
    bits = pack(mask)
    assert bits.dtype == torch.uint8
    assert bits.shape == (rows, -(-columns // 8))
    for row in range(rows):
        for column in range(columns):
            assert bool(bits[row, column // 8] >> (column % 8) & 1) == bool(mask[row, column])
    assert torch.equal(unpack(bits, columns, "w"), mask)


def test_by_hand() -> None:
    mask = torch.tensor([[1, 0, 0, 0, 0, 0, 0, 1, 0, 1]], dtype=torch.bool)
    assert pack(mask).tolist() == [[0b10000001, 0b10]]


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="boolean"):
        pack(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"^w: 9 columns are packed as uint8 \[out, 2\]"):
        unpack(torch.zeros(2, 1, dtype=torch.uint8), 9, "w")
    with pytest.raises(ValueError, match=r"^w: .*uint8"):
        unpack(torch.zeros(2, 2, dtype=torch.int32), 9, "w")
    with pytest.raises(ValueError, match=r"^w: row 1 has a bit set behind its last column, 8"):
        unpack(torch.tensor([[255, 1], [0, 2]], dtype=torch.uint8), 9, "w")
