import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import native
from openwork.kernels.code_groups import FEW_SAMPLES, GROUP, PADDING, STATISTIC_DTYPES, groups_in
from openwork.kernels.group_int4 import check_groups, decode, int4_groups, pack_codes, unpack_codes
from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.topology import row_of
from tests.kernels.matrices import SIZES, SPARSITIES
from tests.kernels.test_linear import DENSE_ACTIVATION


def random_groups(rows, columns, sparsity, seed, dtype=torch.float16):
    """The arguments of `int4_groups`, and the dense matrix in float64."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, groups_in(columns), generator=generator) >= sparsity
    if rows > 2 and seed % 3 == 0:
        mask[seed % rows] = False  # an empty row
    kept = int(mask.sum())
    row_ptr = torch.zeros(rows + 1, dtype=torch.int32)
    row_ptr[1:] = mask.sum(1).cumsum(0)
    group_col = mask.nonzero()[:, 1].int()
    codes = pack_codes(torch.randint(0, 16, (kept, GROUP), generator=generator))
    scales = (torch.randn(kept, generator=generator) * 0.3).to(dtype)
    zeros = (torch.rand(kept, generator=generator) * 17 - 1).to(dtype)
    shape = (rows, columns)
    return (codes, scales, zeros, row_ptr, group_col, shape), dense_of(
        codes, scales, zeros, row_ptr, group_col, shape
    )


def dense_of(codes, scales, zeros, row_ptr, group_col, shape):
    """By its definition, one weight at a time."""
    weights = (unpack_codes(codes).double() - zeros.double()[:, None]) * scales.double()[:, None]
    dense = torch.zeros(shape[0], groups_in(shape[1]) * GROUP, dtype=torch.float64)
    for row, column, weight in zip(
        row_of(row_ptr, group_col), group_col.long() * GROUP, weights, strict=True
    ):
        dense[row, column : column + GROUP] = weight
    return dense[:, : shape[1]]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(
    rows=SIZES, columns=SIZES, batch=st.sampled_from([0, 1, 2, 3, 7, 11, 12, 19, 40, 65]), sparsity=SPARSITIES,
    bias=st.booleans(), seed=st.integers(0, 99), dtype=st.sampled_from(STATISTIC_DTYPES),
)  # fmt: skip
def test_equals_the_dense_product(level, activation, rows, columns, batch, sparsity, bias, seed, dtype):
    arguments, dense = random_groups(rows, columns, sparsity, seed, dtype)
    x = torch.randn(batch, columns)
    b = torch.randn(rows) if bias else None
    y = int4_groups(*arguments).linear(x, b, activation)
    expected = DENSE_ACTIVATION[activation](F.linear(x.double(), dense, None if b is None else b.double()))
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=5e-5)


def test_every_half_is_converted_exactly(level):
    """Scales of every finite bit pattern, subnormal ones too: the inputs pick out single weights."""
    bits = torch.arange(2**16).to(torch.uint16).view(torch.float16)
    scales = bits[bits.isfinite()]
    kept = scales.numel()
    codes = pack_codes(torch.ones(kept, GROUP, dtype=torch.uint8))
    row_ptr = torch.arange(kept + 1, dtype=torch.int32)
    arguments = (codes, scales, torch.zeros_like(scales), row_ptr, torch.zeros(kept).int(), (kept, 1))
    assert torch.equal(int4_groups(*arguments).linear(torch.ones(1, 1))[0], scales.float())


@pytest.mark.parametrize("dtype", STATISTIC_DTYPES)
def test_a_code_that_is_the_zero_is_exactly_zero_and_weights_are_rounded_once(level, dtype):
    generator = torch.Generator().manual_seed(1)
    scales = torch.randn(400, generator=generator).to(dtype)
    zeros = torch.randint(0, 16, (400,), generator=generator).to(dtype)
    for column in range(GROUP):
        codes = torch.randint(0, 16, (400, GROUP), generator=generator)
        codes[:200, column] = zeros[:200].long()
        arguments = (
            pack_codes(codes), scales, zeros, torch.arange(401).int(), torch.zeros(400).int(), (400, 16)
        )  # fmt: skip
        x = torch.zeros(1, 16)
        x[0, column] = 1
        y = int4_groups(*arguments).linear(x)[0]
        assert not y[:200].any()
        exact = (codes[:, column].double() - zeros.double()) * scales.double()
        assert torch.equal(y, exact.float())


@given(rows=SIZES, seed=st.integers(0, 99))
def test_codes_pack_and_unpack(rows, seed):
    codes = torch.randint(0, 16, (rows, GROUP), generator=torch.Generator().manual_seed(seed))
    packed = pack_codes(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, GROUP // 2)
    assert torch.equal(unpack_codes(packed), codes)


def test_codes_by_hand():
    packed = pack_codes(torch.arange(16)[None])
    assert packed.tolist() == [[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]
    for wrong in (torch.full((1, 16), 16), torch.full((1, 16), -1), torch.zeros(16), torch.zeros(1, 15)):
        with pytest.raises(ValueError, match="codes"):
            pack_codes(wrong.long())


def test_decoding_is_differentiable_in_scales_and_zeros():
    codes = pack_codes(torch.arange(16)[None])
    scales, zeros = torch.tensor([0.5], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    weights = decode(codes, scales, zeros)
    assert weights.tolist() == [[(code - 3) * 0.5 for code in range(16)]]
    weights.sum().backward()
    assert scales.grad.item() == sum(code - 3 for code in range(16))
    assert zeros.grad.item() == -8.0


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8, 11, 12, 40, 200])
def test_bits_do_not_depend_on_threads_or_on_a_few_samples(level, monkeypatch, batch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    arguments, _ = random_groups(170, 301, 0.5, 3)
    groups = int4_groups(*arguments)
    x, before, results = torch.randn(batch, 301), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(groups.linear(x, activation="gelu"))
        if batch < FEW_SAMPLES:
            results.append(torch.cat([groups.linear(row[None], activation="gelu") for row in x]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_rows_of_very_different_length(level):
    """Balanced shares may leave a thread without rows."""
    arguments, dense = random_groups(40, 2000, 0.98, 5)
    codes, scales, zeros, row_ptr, group_col, _shape = arguments
    full = torch.arange(groups_in(2000)).int()  # one row keeps everything
    row_ptr = torch.cat([row_ptr, row_ptr[-1:] + full.numel()])
    one = random_groups(1, 2000, 0.0, 8)
    joined = (
        torch.cat([codes, one[0][0]]), torch.cat([scales, one[0][1]]), torch.cat([zeros, one[0][2]]), row_ptr,
        torch.cat([group_col, full]), (41, 2000),
    )  # fmt: skip
    x = torch.randn(3, 2000)
    y = int4_groups(*joined).linear(x)
    torch.testing.assert_close(y.double(), x.double() @ torch.cat([dense, one[1]]).T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 5, 9, 12, 17, 70])
def test_nan_and_infinity_reach_the_rows_that_keep_their_group(level, batch):
    arguments, _ = random_groups(9, 70, 0.5, 1)
    _, _, _, row_ptr, group_col, _ = arguments
    for column, poison in ((3, float("nan")), (69, float("inf")), (40, -float("inf"))):
        x = torch.randn(batch, 70)
        x[0, column] = poison
        y = int4_groups(*arguments).linear(x)
        reached = torch.zeros(9, dtype=torch.bool)
        reached[row_of(row_ptr, group_col)[group_col == column // GROUP]] = True
        assert torch.equal(~y[0].isfinite(), reached)
        assert y[1:].isfinite().all()


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0), (5, 40)])
def test_empty_matrices(level, rows, columns):
    arguments = (
        torch.zeros(0, 8, dtype=torch.uint8), torch.ones(0).half(), torch.ones(0).half(),
        torch.zeros(rows + 1).int(), torch.zeros(0).int(), (rows, columns),
    )  # fmt: skip
    y = int4_groups(*arguments).linear(torch.ones(2, columns), torch.full((rows,), 2.0))
    assert torch.equal(y, torch.full((2, rows), 2.0))


@pytest.mark.parametrize("shape", [(50,), (2, 3, 50), (0, 50), (4, 0, 50)])
def test_leading_dimensions_and_strides(level, shape):
    arguments, dense = random_groups(20, 50, 0.4, 5)
    x = torch.randn(*shape[:-1], 100)[..., ::2]
    y = int4_groups(*arguments).linear(x, torch.ones(40)[::2])
    assert y.shape == (*shape[:-1], 20)
    torch.testing.assert_close(y.double(), F.linear(x.double(), dense) + 1, rtol=1e-5, atol=1e-5)


@given(
    seed=st.integers(0, 99), batch=st.sampled_from([1, 3, 8, 12, 40]), dtype=st.sampled_from(STATISTIC_DTYPES)
)
def test_codes_stand_for_the_numbers_of_a_table(level, seed, batch, dtype):
    (codes, scales, zeros, row_ptr, group_col, shape), _ = random_groups(19, 53, 0.4, seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randn(16, generator=generator)
    x = torch.randn(batch, 53, generator=generator)
    groups = int4_groups(codes, scales, zeros, row_ptr, group_col, shape, levels)
    weights = (levels[unpack_codes(codes).long()].double() - zeros.double()[:, None]) * scales.double()[
        :, None
    ]
    dense = torch.zeros(19, groups_in(53), GROUP, dtype=torch.float64)
    dense[row_of(row_ptr, group_col).long(), group_col.long()] = weights
    expected = x.double() @ dense.flatten(1)[:, :53].T
    torch.testing.assert_close(groups.linear(x).double(), expected, rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(groups.twin(x, None, "none").double(), expected, rtol=1e-5, atol=5e-5)
    with pytest.raises(ValueError, match="16 finite numbers"):
        int4_groups(codes, scales, zeros, row_ptr, group_col, shape, levels[:15])
    with pytest.raises(ValueError, match="16 finite numbers"):
        int4_groups(codes, scales, zeros, row_ptr, group_col, shape, levels / 0)


def test_more_groups_than_16_bits_name(level):
    columns = 2**20 + 100
    row_ptr, group_col = torch.tensor([0, 2, 3]).int(), torch.tensor([0, 65540, 65541]).int()
    codes = pack_codes(torch.full((3, GROUP), 3))
    arguments = (codes, torch.ones(3).half(), torch.zeros(3).half(), row_ptr, group_col, (2, columns))
    groups = int4_groups(*arguments)
    assert groups.columns.dtype == torch.int32
    x = torch.zeros(1, columns)
    x[0, 65540 * 16] = 1
    x[0, 65541 * 16 + 5] = 2
    assert groups.linear(x).tolist() == [[3.0, 6.0]]


def test_the_twin_agrees(monkeypatch):
    arguments, _ = random_groups(50, 70, 0.6, 6)
    groups = int4_groups(*arguments)
    x, bias = torch.randn(3, 70), torch.randn(50)
    x[0, 3] = float("nan")
    expected = groups.linear(x, bias, "silu")
    monkeypatch.setattr(native, "enabled", lambda: False)
    torch.testing.assert_close(groups.linear(x, bias, "silu"), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_the_operator_is_sound_and_compiles():
    groups = int4_groups(*random_groups(20, 50, 0.5, 1)[0])
    x = torch.randn(2, 50)
    held = [groups.columns, groups.codes, groups.scales, groups.zeros, groups.ends]
    torch.library.opcheck(torch.ops.openwork.group_int4_linear, (x, held, None, groups.shape[0], "relu"))
    compiled = torch.compile(lambda x: groups.linear(x) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), groups.linear(x) + 1)


def test_bytes_are_fourteen_a_group():
    arguments, _ = random_groups(30, 170, 0.5, 2)
    kept = arguments[4].numel()
    assert int4_groups(*arguments).nbytes == 14 * (kept + PADDING) + 8 * 31


@pytest.mark.parametrize("copied", [False, True])
def test_later_changes_are_not_seen(copied):
    arguments, _ = random_groups(30, 64, 0.2, 2)
    groups = int4_groups(*arguments)
    groups = copy.deepcopy(groups) if copied else groups
    x = torch.randn(1, 64)
    before = groups.linear(x)
    for tensor in arguments[:5]:
        tensor.zero_()
    assert torch.equal(groups.linear(x), before)


@given(
    place=st.integers(0, 11), number=st.sampled_from([-(2**31), -1, 4, 5, 100, 2**16, 2**31 - 1]),
    where=st.sampled_from(["row_ptr", "group_col"]),
)  # fmt: skip
def test_hostile_indices_stop_at_the_border(place, number, where):
    arguments, _ = random_groups(6, 60, 0.4, 7)
    row_ptr, group_col = arguments[3].clone(), arguments[4].clone()
    spoiled = row_ptr if where == "row_ptr" else group_col
    spoiled[place % spoiled.numel()] = number
    if torch.equal(spoiled, arguments[3] if where == "row_ptr" else arguments[4]):
        return
    legal = where == "row_ptr" and bool((row_ptr.diff() >= 0).all()) and row_ptr[-1] == group_col.numel()
    if legal and row_ptr[0] == 0:
        return
    with pytest.raises(ValueError, match="row_ptr and group_col"):
        int4_groups(*arguments[:3], row_ptr, group_col, arguments[5])


def test_what_does_not_fit_is_refused():
    arguments, _ = random_groups(6, 60, 0.2, 4)
    codes, scales, zeros, row_ptr, group_col, shape = arguments
    check_groups(*arguments)
    for wrong, error in (
        ((codes.int(), scales, zeros, row_ptr, group_col, shape), TypeError),
        ((codes[1:], scales, zeros, row_ptr, group_col, shape), ValueError),
        ((codes[:, :4], scales, zeros, row_ptr, group_col, shape), ValueError),
        ((codes, scales.double(), zeros.double(), row_ptr, group_col, shape), TypeError),
        ((codes, scales, zeros.bfloat16(), row_ptr, group_col, shape), TypeError),
        ((codes, scales[1:], zeros, row_ptr, group_col, shape), ValueError),
        ((codes, scales, zeros[1:], row_ptr, group_col, shape), ValueError),
        ((codes, scales, zeros, row_ptr.long(), group_col, shape), TypeError),
        ((codes, scales, zeros, row_ptr, group_col, (6, 40)), ValueError),
        ((codes, scales, zeros, row_ptr, group_col, (5, 60)), ValueError),
        ((codes, scales, zeros, row_ptr, group_col, (6, -60)), ValueError),
        ((codes, scales.clone().fill_(float("nan")), zeros, row_ptr, group_col, shape), ValueError),
        ((codes, scales, zeros.clone().fill_(float("inf")), row_ptr, group_col, shape), ValueError),
    ):
        with pytest.raises(error):
            int4_groups(*wrong)
    wide = torch.full_like(scales, 3e38, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="group 0 has the scale"):
        int4_groups(codes, wide, zeros.bfloat16(), row_ptr, group_col, shape)
    groups = int4_groups(*arguments)
    with pytest.raises(ValueError, match=r"x must be \[\.\.\., 60\]"):
        groups.linear(torch.zeros(1, 59))
    with pytest.raises(TypeError, match=r"x must be float32 on the CPU, found torch\.bfloat16"):
        groups.linear(torch.zeros(1, 60, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="no gradients"):
        groups.linear(torch.zeros(1, 60, requires_grad=True))
