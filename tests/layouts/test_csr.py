"""Topologies against plain dense masks, scipy and counting."""

from itertools import pairwise

import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openwork.layouts.csr import CSR

I32 = torch.int32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(0, 13))
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    return torch.rand(rows, columns, generator=generator(draw(st.integers(0, 999)))) < density


@given(masks())
def test_agrees_with_scipy_and_returns(mask: torch.Tensor) -> None:
    csr = CSR.from_mask(mask).validate("w")
    oracle = scipy.sparse.csr_array(mask.numpy())
    assert csr.crow.tolist() == oracle.indptr.tolist()
    assert csr.col.tolist() == oracle.indices.tolist()
    assert csr.crow.dtype == csr.col.dtype == I32
    assert torch.equal(csr.mask(), mask)
    assert csr.kept == int(mask.sum())
    assert csr.fan_in.tolist() == mask.sum(1).tolist()
    assert csr.positions().tolist() == mask.flatten().nonzero().flatten().tolist()
    assert csr.nbytes == 4 * (len(mask) + 1 + csr.kept)
    again = CSR.from_positions(csr.positions(), csr.shape).validate("w")
    assert again == csr
    assert hash(again) == hash(csr)
    assert again.digest == csr.digest


@given(masks())
def test_transpose_carries_values_over(mask: torch.Tensor) -> None:
    csr = CSR.from_mask(mask)
    values = torch.randn(csr.kept, generator=generator())
    transposed, order = csr.transpose()
    transposed.validate("transposed")
    assert torch.equal(transposed.dense(values[order]), csr.dense(values).T)
    twice, order_back = transposed.transpose()
    assert twice == csr
    assert torch.equal(order[order_back], torch.arange(csr.kept))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_dense_has_exactly_the_values(dtype: torch.dtype) -> None:
    mask = torch.rand(7, 5, generator=generator(1)) < 0.4
    weight = torch.randn(7, 5, generator=generator(2)).mul(9).to(dtype)
    dense = CSR.from_mask(mask).dense(weight[mask])
    assert dense.dtype == dtype
    assert torch.equal(dense, torch.where(mask, weight, 0))


def test_dense_is_differentiable() -> None:
    csr = CSR.from_mask(torch.tensor([[False, True, True], [True, False, False]]))
    values = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(csr.dense, values)


@pytest.mark.parametrize(
    ("dtype", "integer"),
    [
        (torch.float64, torch.int64),
        (torch.float32, I32),
        (torch.float16, torch.int16),
        (torch.bfloat16, torch.int16),
    ],
)
def test_dense_keeps_the_bits_of_every_nan(dtype: torch.dtype, integer: torch.dtype) -> None:
    bits = torch.randint(256, (2000 * dtype.itemsize,), generator=generator(), dtype=torch.uint8).view(
        integer
    )
    mask = torch.rand(50, 80, generator=generator(1)) < 2
    mask[::2] = False
    dense = CSR.from_mask(mask).dense(bits.view(dtype))
    assert torch.equal(dense.view(integer)[mask], bits)


def test_other_connections_are_another_topology() -> None:
    a = CSR.from_mask(torch.tensor([[True, False], [False, True]]))
    b = CSR.from_mask(torch.tensor([[True, False], [True, False]]))
    wider = CSR((2, 3), a.crow, a.col)
    assert len({a, b, wider}) == 3
    assert len({a.digest, b.digest, wider.digest}) == 3
    assert all(-(2**63) <= x.digest < 2**63 for x in (a, b, wider))
    assert a != "a"


@pytest.mark.parametrize(
    ("rows", "columns", "kept"), [(1, 1, 1), (5, 7, 0), (5, 7, 35), (5, 7, 20), (3, 40, 9), (0, 4, 0)]
)
def test_random_keeps_exactly_what_was_asked(rows: int, columns: int, kept: int) -> None:
    csr = CSR.random((rows, columns), kept, generator(3)).validate("w")
    assert csr.kept == kept
    assert csr == CSR.random((rows, columns), kept, generator(3))


def test_random_is_uniform() -> None:
    """Each of the 15 pairs out of 6 comes equally often: chi-square of 14 degrees, beyond its 99.9 %."""
    counts: dict[tuple[int, ...], int] = {}
    source = generator(5)
    for _ in range(3000):
        pair = tuple(CSR.random((2, 3), 2, source).positions().tolist())
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 15
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 40


def test_random_needs_no_memory_of_the_dense_size() -> None:
    csr = CSR.random((1_000_000, 1_000_000), 5000, generator(0)).validate("huge")  # 10^12 positions
    assert csr.kept == 5000
    assert CSR.from_positions(csr.positions(), csr.shape) == csr


@pytest.mark.parametrize("kept", [-1, 7])
def test_random_refuses_the_impossible(kept: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {kept}"):
        CSR.random((2, 3), kept, generator())


def crow(*entries: int) -> torch.Tensor:
    return torch.tensor(entries, dtype=I32)


@pytest.mark.parametrize(
    ("pointers", "columns", "told"),
    [
        (crow(0, 1, 2).long(), crow(0, 1), "crow is a vector of int32, not int64"),
        (crow(0, 1, 2), crow(0, 1).float(), "col is a vector of int32, not float32"),
        (crow(0, 1, 2), crow(0, 1)[None], "col is a vector"),
        (crow(0, 2), crow(0, 1), "2 rows has 3 entries, found 2"),
        (crow(1, 1, 2), crow(0, 1), "row 0 starts at entry 1"),
        (crow(0, 3, 2), crow(0, 1), "row 1 starts at entry 3 and ends before it, at 2"),
        (crow(0, 2**31 - 1, -(2**31)), crow(0, 1), "row 1 starts"),  # whose int32 difference is positive
        (crow(0, 1, 3), crow(0, 1), "row 1 ends at entry 3, but there are 2"),
        (crow(0, 1, 1), crow(0, 1), "row 1 ends at entry 1, but there are 2"),
        (crow(0, 1, 2), crow(0, 3), "row 1 names column 3"),
        (crow(0, 1, 2), crow(-1, 0), "row 0 names column -1"),
        (crow(0, 0, 2), crow(1, 0), "row 1 has column 0 after 1"),
        (crow(0, 2, 3), crow(1, 1, 0), "row 0 has column 1 after 1"),
    ],
)
def test_validate_names_the_first_wrong_row(pointers: torch.Tensor, columns: torch.Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=rf"layer\.weight: .*{told}"):
        CSR((2, 3), pointers, columns).validate("layer.weight")


def test_rows_may_start_lower_than_the_last_ended() -> None:
    CSR((4, 3), crow(0, 2, 2, 3, 4), crow(1, 2, 0, 0)).validate("w")


@settings(max_examples=300)
@given(masks(), st.data())
def test_validate_finds_any_single_wrong_index(mask: torch.Tensor, data: st.DataObject) -> None:
    """Against a slow oracle: after one change, arrays are valid exactly if they describe some mask again."""
    csr = CSR.from_mask(mask)
    pointers, columns = csr.crow.clone(), csr.col.clone()
    array = data.draw(st.sampled_from([pointers, columns]))
    if array.numel():
        array[data.draw(st.integers(0, array.numel() - 1))] = data.draw(st.integers(-2, 15))
    starts, entries = pointers.tolist(), columns.tolist()
    sound = starts[0] == 0 and starts[-1] == len(entries) and starts == sorted(starts)
    for start, end in pairwise(starts):
        row = entries[start:end] if sound else []
        sound = sound and row == sorted(set(row)) and all(0 <= c < mask.shape[1] for c in row)
    changed = CSR(csr.shape, pointers, columns)
    if sound:
        changed.validate("w")
    else:
        with pytest.raises(ValueError, match=r"^w: .*row"):
            changed.validate("w")


@pytest.mark.parametrize(
    ("positions", "told"),
    [([2, 1], "ascending"), ([1, 1], "ascending"), ([-1, 2], "do not fit"), ([0, 6], "do not fit")],
)
def test_positions_are_checked(positions: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CSR.from_positions(torch.tensor(positions), (2, 3))


def test_arguments_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="boolean mask"):
        CSR.from_mask(torch.ones(2, 3))
    with pytest.raises(ValueError, match="boolean mask"):
        CSR.from_mask(torch.ones(2, 3, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="vector of int64"):
        CSR.from_positions(torch.tensor([1], dtype=I32), (2, 3))
    with pytest.raises(ValueError, match="cannot be indexed with int32"):
        CSR.from_positions(torch.tensor([1]), (2, 2**31))
    with pytest.raises(ValueError, match="need values"):
        CSR.from_mask(torch.ones(2, 3, dtype=torch.bool)).dense(torch.ones(5))
