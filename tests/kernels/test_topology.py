import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels.index import prepare
from tests.kernels.matrices import SIZES, SPARSITIES, random_matrix

I32 = torch.int32


@pytest.mark.parametrize(
    ("crow", "col", "shape", "message"),
    [
        ([0, 1], [0], (2, 3), r"rows \+ 1 = 3 entries, found 2"),
        ([1, 1, 1], [0], (2, 3), "from 0 to the 1 nonzeros"),
        ([0, 1, 2], [0], (2, 3), "found 0 to 2"),
        ([0, 2, 1], [0], (2, 3), "found 0 to 1|must not decrease"),
        ([0, 3, 1, 2], [0, 1], (3, 3), "must not decrease, found 3 then 1 at row 1"),
        ([0, -1, 1], [0], (2, 3), "must not decrease"),
        ([0, 1, 2], [0, 3], (2, 3), r"columns must be 0 \.\.\. 2, found 0 \.\.\. 3"),
        ([0, 1, 2], [-1, 0], (2, 3), r"found -1"),
        ([0, 0, 2], [1, 1], (2, 3), "row 1 has column 1 after 1"),
        ([0, 0, 2], [2, 1], (2, 3), "row 1 has column 1 after 2"),
        ([0], [], (0, 2**26), "is not possible"),
    ],
)
def test_bad_indices_are_refused_by_name(crow, col, shape, message):
    with pytest.raises(ValueError, match=message) as error:
        prepare(torch.tensor(crow, dtype=I32), torch.tensor(col, dtype=I32), shape, "layers.3")
    assert "layers.3" in str(error.value)


def test_wrong_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"col must be int32, found torch\.int64"):
        prepare(torch.tensor([0, 1], dtype=I32), torch.tensor([0]), (1, 1))


@given(rows=SIZES, columns=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_every_nonzero_is_in_one_run(rows, columns, sparsity, seed):
    prepared, _, _ = random_matrix(rows, columns, sparsity, seed)
    for walk in (prepared.walk, prepared.transposed):
        col, runs, buckets, parts = walk[:4]
        used = runs[: int(buckets.sum())]
        covered = torch.cat([torch.arange(first, first + length) for _, first, length in used.tolist()])
        assert torch.equal(covered.sort().values, torch.arange(prepared.kept))
        assert int(parts[-1, 1]) == int(buckets.sum())
        assert col.numel() == prepared.kept
        assert not runs[int(buckets.sum()) :].any()


@given(rows=SIZES, columns=SIZES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_the_transposed_walk_names_the_same_nonzeros_in_its_order(rows, columns, sparsity, seed):
    prepared, _, _ = random_matrix(rows, columns, sparsity, seed)
    row, column = prepared.positions // columns, prepared.positions % columns
    col, runs, buckets, _, permutation = prepared.transposed
    assert torch.equal(col.long(), row[permutation])
    assert torch.equal(permutation.sort().values.long(), torch.arange(prepared.kept))
    met = 0
    for line, first, length in runs[: int(buckets.sum())].tolist():
        assert first == met
        assert bool((column[permutation[first : first + length]] == line).all())
        assert bool((col[first : first + length].diff() > 0).all())
        met += length


@given(
    rows=SIZES,
    columns=SIZES,
    sparsity=SPARSITIES,
    seed=st.integers(0, 99),
    block=st.sampled_from([5, 64, 10**6]),
)
def test_the_transposed_walk_is_the_walk_of_the_transposed_matrix(rows, columns, sparsity, seed, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openwork.kernels.index.block_columns", lambda *_: block)
        patch.setattr("openwork.kernels.index.part_count", lambda _: 3)
        prepared, _, _ = random_matrix(rows, columns, sparsity, seed)
        crow, col, _ = torch.ops.openwork.transpose(prepared.crow, prepared.col, columns)
        expected, found = prepare(crow, col, (columns, rows)).walk, prepared.transposed
    assert torch.equal(found[1][:, ::2], expected[1][:, ::2])  # row and length; the nonzeros stand elsewhere
    assert torch.equal(found[2], expected[2])
    assert torch.equal(found[3], expected[3])
