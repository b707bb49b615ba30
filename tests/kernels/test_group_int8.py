import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import native
from openwork.kernels.code_groups import FEW_SAMPLES, GROUP, PADDING, STATISTIC_DTYPES, groups_in
from openwork.kernels.group_int8 import int8_groups
from openwork.kernels.linear import ACTIVATIONS
from openwork.kernels.topology import row_of
from tests.kernels.matrices import SIZES, SPARSITIES
from tests.kernels.test_linear import DENSE_ACTIVATION


def random_groups(rows, columns, sparsity, seed, dtype=torch.float16):
    """The arguments of `int8_groups`, and the dense matrix in float64 by its definition."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, groups_in(columns), generator=generator) >= sparsity
    kept = int(mask.sum())
    row_ptr = torch.zeros(rows + 1, dtype=torch.int32)
    row_ptr[1:] = mask.sum(1).cumsum(0)
    group_col = mask.nonzero()[:, 1].int()
    codes = torch.randint(0, 256, (kept, GROUP), generator=generator).to(torch.uint8)
    scales = (torch.randn(kept, generator=generator) * 0.02).to(dtype)
    zeros = (torch.rand(kept, generator=generator) * 255).to(dtype)
    weights = (codes.double() - zeros.double()[:, None]) * scales.double()[:, None]
    dense = torch.zeros(rows, groups_in(columns), GROUP, dtype=torch.float64)
    dense[row_of(row_ptr, group_col).long(), group_col.long()] = weights
    return (codes, scales, zeros, row_ptr, group_col, (rows, columns)), dense.flatten(1)[:, :columns]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(
    rows=SIZES, columns=SIZES, batch=st.sampled_from([0, 1, 2, 3, 7, 11, 12, 19, 40, 65]), sparsity=SPARSITIES,
    bias=st.booleans(), seed=st.integers(0, 99), dtype=st.sampled_from(STATISTIC_DTYPES),
)  # fmt: skip
def test_equals_the_dense_product(level, activation, rows, columns, batch, sparsity, bias, seed, dtype):
    arguments, dense = random_groups(rows, columns, sparsity, seed, dtype)
    x = torch.randn(batch, columns)
    b = torch.randn(rows) if bias else None
    y = int8_groups(*arguments).linear(x, b, activation)
    expected = DENSE_ACTIVATION[activation](F.linear(x.double(), dense, None if b is None else b.double()))
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("dtype", STATISTIC_DTYPES)
def test_every_weight_has_its_bits_and_the_zero_is_zero(level, dtype):
    """All codes with all whole zeros: weights are rounded once, and zero where the code is the zero."""
    codes = torch.arange(256).to(torch.uint8).view(16, GROUP).repeat(256, 1)
    zeros = torch.arange(256).repeat_interleave(16).to(dtype)
    scales = torch.randn(codes.shape[0], generator=torch.Generator().manual_seed(0)).to(dtype)
    kept = codes.shape[0]
    pointers = torch.arange(kept + 1).int(), torch.zeros(kept).int(), (kept, GROUP)
    found = int8_groups(codes, scales, zeros, *pointers).linear(torch.eye(GROUP)).T
    exact = (codes.double() - zeros.double()[:, None]) * scales.double()[:, None]
    assert torch.equal(found, exact.float())
    assert int((found == 0).sum()) == 256  # each code is a zero once


@pytest.mark.parametrize("batch", [1, 5, 8, 11, 40])
def test_bits_do_not_depend_on_threads_or_on_a_few_samples(level, monkeypatch, batch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    groups = int8_groups(*random_groups(170, 301, 0.5, 3)[0])
    x, before, results = torch.randn(batch, 301), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(groups.linear(x))
        if batch < FEW_SAMPLES:
            results.append(torch.cat([groups.linear(row[None]) for row in x]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_more_groups_than_16_bits_name(level):
    row_ptr, group_col = torch.tensor([0, 2, 3]).int(), torch.tensor([0, 65540, 65541]).int()
    codes = torch.full((3, GROUP), 203, dtype=torch.uint8)
    shape = 2, 2**20 + 100
    groups = int8_groups(
        codes, torch.ones(3).half(), torch.full((3,), 200.0).half(), row_ptr, group_col, shape
    )
    x = torch.zeros(1, shape[1])
    x[0, 65540 * 16], x[0, 65541 * 16 + 5] = 1, 2
    assert groups.linear(x).tolist() == [[3.0, 6.0]]


def test_the_twin_agrees_and_bytes_are_twenty_two_a_group(monkeypatch):
    groups = int8_groups(*random_groups(50, 70, 0.6, 6)[0])
    assert groups.nbytes == 22 * (groups.kept + PADDING) + 8 * 51
    x, bias = torch.randn(3, 70), torch.randn(50)
    expected = groups.linear(x, bias, "silu")
    monkeypatch.setattr(native, "enabled", lambda: False)
    torch.testing.assert_close(groups.linear(x, bias, "silu"), expected, rtol=1e-5, atol=1e-4)


def test_the_operator_is_sound_and_compiles():
    groups = int8_groups(*random_groups(20, 50, 0.5, 1)[0])
    x = torch.randn(2, 50)
    held = [groups.columns, groups.codes, groups.scales, groups.zeros, groups.ends]
    torch.library.opcheck(torch.ops.openwork.group_int8_linear, (x, held, None, groups.shape[0], "relu"))
    compiled = torch.compile(lambda x: groups.linear(x) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), groups.linear(x) + 1)


def test_what_does_not_fit_is_refused():
    codes, scales, zeros, row_ptr, group_col, shape = random_groups(6, 60, 0.2, 4)[0]
    for wrong, error in (
        ((codes.char(), scales, zeros, row_ptr, group_col, shape), TypeError),
        ((codes[:, :8], scales, zeros, row_ptr, group_col, shape), ValueError),
        ((codes, scales, zeros.float(), row_ptr, group_col, shape), TypeError),
        ((codes, scales, zeros, row_ptr, group_col, (6, 40)), ValueError),
        ((codes, scales / 0, zeros, row_ptr, group_col, shape), ValueError),
    ):
        with pytest.raises(error):
            int8_groups(*wrong)
