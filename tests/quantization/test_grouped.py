"""Who shares a placement, and how many bytes that costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.quantization import FloatGrid, Grid, IntegerGrid, Quantized, nearest
from openwork.quantization.codes import pack, packed_bytes, unpack
from openwork.quantization.two_level import two_level


def weight(rows: int = 7, inputs: int = 29, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "grid", [IntegerGrid(4), IntegerGrid(3, symmetric=True), FloatGrid(2, 1, "max")], ids=repr
)
@pytest.mark.parametrize("group", [1, 5, 8, 29, 64, "row"])
def test_each_group_is_quantised_alone(grid: Grid, group: int | str) -> None:
    w = weight()
    found = nearest(w, grid, group).dense()
    size = w.shape[1] if group == "row" else group
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], size):
            part = w[row : row + 1, start : start + size]
            at = grid.fit(part)
            expected = grid.decode(grid.encode(part, at[:, None]), at[:, None])
            assert torch.equal(found[row : row + 1, start : start + size], expected)


def test_a_whole_tensor_shares_one_scale() -> None:
    q = nearest(weight(), IntegerGrid(4), "tensor")
    assert q.at.scale.shape == (1, 1)
    assert q.dense().unique().numel() <= 16


def test_finer_nested_groups_never_err_more_with_an_exact_zero() -> None:
    w = weight(16, 64)
    errors = [
        float((nearest(w, IntegerGrid(4, zero="real"), g).dense() - w).square().sum())
        for g in (8, 16, 32, 64)
    ]
    assert errors == sorted(errors)


@given(st.integers(1, 8), st.integers(0, 19), st.integers(0, 2**31))
def test_packing_and_unpacking_are_inverse(bits: int, count: int, seed: int) -> None:
    codes = torch.randint(
        0, 2**bits, (3, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    packed = pack(codes, bits)
    assert packed.shape == (3, packed_bytes(count, bits))
    assert torch.equal(unpack(packed, bits, count), codes)
    for row, line in zip(codes.tolist(), packed.tolist(), strict=True):
        number = sum(code << (bits * i) for i, code in enumerate(row))
        assert bytes(line) == number.to_bytes(packed_bytes(count, bits), "little")


def test_four_bits_have_the_low_half_first() -> None:
    assert pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x21, 0x03]


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="a code of 9"):
        pack(torch.tensor([9], dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="2 bytes"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, 3)


@pytest.mark.parametrize(
    ("grid", "group", "bits"),
    [
        (IntegerGrid(4, scales="float16"), 16, 4 + (16 + 4) / 16),
        (IntegerGrid(3, symmetric=True, scales="float16"), 8, 3 + 16 / 8),
        (IntegerGrid(4, zero="real", scales="float16"), 32, 4 + 32 / 32),
        (FloatGrid(2, 1, scales="bfloat16"), "row", 4 + 16 / 64),
    ],
    ids=repr,
)
def test_bits_per_weight_are_the_bytes(grid: Grid, group: int | str, bits: float) -> None:
    q = nearest(weight(8, 64), grid, group)
    assert q.bits_per_weight == pytest.approx(bits)
    packed = pack(q.codes, grid.bits).numel()
    assert q.nbytes == pytest.approx(packed + q.at.scale.numel() * grid.placement_bits / 8)
    assert q.nbytes * 8 / q.codes.numel() == pytest.approx(bits)


def test_stored_scales_are_the_scales_that_are_used() -> None:
    q: Quantized = nearest(weight() * 0.01, IntegerGrid(4, scales="float16"), 8)
    assert torch.equal(q.at.scale, q.at.scale.half().double())
    assert bool(((q.dense() - weight() * 0.01).abs() <= q.placement().scale * 0.51).all())


def test_statistics_of_groups_are_themselves_quantised() -> None:
    w = weight(40, 48)
    first = nearest(w, IntegerGrid(3), 16).at
    held = two_level(first, bits=3, rows=16)
    at = held.placement()
    assert at.scale.shape == first.scale.shape == (40, 3)
    assert torch.equal(at.zero, at.zero.round())
    span = first.scale.T.unflatten(1, (-1, 8)).amax(-1)  # 40 rows are runs of 16, 16 and 8
    assert bool(((at.scale - first.scale).abs() <= float(span.max()) / 7).all())
    assert held.scale.codes.max() <= 7
    rows, groups = first.scale.shape
    runs = -(-rows // 16)
    assert held.nbytes == 2 * (groups * packed_bytes(rows, 3) + groups * runs * 4)


def test_equal_statistics_survive_their_quantisation() -> None:
    w = weight(1, 48).expand(20, -1).contiguous()
    first = nearest(w, IntegerGrid(4, scales="float16"), 16).at
    at = two_level(first).placement()
    assert torch.allclose(at.scale, first.scale, rtol=2e-3)
    assert torch.equal(at.zero, first.zero)
