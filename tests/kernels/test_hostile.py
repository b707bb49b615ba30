"""Indices that are wrong in any way stop at the border: no kernel may see them, as no kernel checks them."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openwork.kernels import native
from openwork.kernels.bitmasked import bitmask_rows
from openwork.kernels.conv import prepare_conv
from openwork.kernels.group_int4 import int4_groups
from openwork.kernels.index import prepare
from openwork.kernels.linear import sparse_linear
from openwork.kernels.nmg import nmg
from openwork.kernels.pairs import pair_up
from openwork.kernels.planes import Convolution
from openwork.kernels.row_blocks import row_blocks
from openwork.kernels.shared_columns import shared_columns
from openwork.kernels.slices import slice_rows
from openwork.kernels.small_batch import octet_rows
from openwork.kernels.squares import square_rows
from openwork.layouts.csr import CSR
from openwork.layouts.linear import SparseLinear

I32 = torch.int32
EXTREMES = [-(2**31), -(2**30), -65536, -1, 2**15, 2**16, 2**26, 2**30, 2**31 - 1]
Shape = tuple[int, int]


@cache
def empty_layer(shape: Shape) -> SparseLinear:
    return SparseLinear(shape[1], shape[0], bias=False, kept=0)


def state(crow: Tensor, col: Tensor, values: Tensor, shape: Shape) -> None:
    empty_layer(shape).load_state_dict({"weight_values": values, "weight_crow": crow, "weight_col": col})


BORDERS: dict[str, Callable[[Tensor, Tensor, Tensor, Shape], Any]] = {
    "walk": lambda crow, col, values, shape: prepare(crow, col, shape),
    "convolution": lambda crow, col, values, shape: prepare_conv(
        crow, col, Convolution(shape[0], shape[1], (1, 1), (1, 1), (0, 0))
    ),
    "octets": lambda crow, col, values, shape: octet_rows(values, crow, col, shape),
    "slices": lambda crow, col, values, shape: slice_rows(values, crow, col, shape),
    "bitmask": lambda crow, col, values, shape: bitmask_rows(values, crow, col, shape),
    "row blocks": lambda crow, col, values, shape: row_blocks(crow, col, values, shape, 4),
    "shared columns": shared_columns,
    "squares": lambda crow, col, values, shape: square_rows(values, crow, col, shape),
    "pairs": lambda crow, col, values, shape: pair_up(values, crow, col, shape),
    "groups of codes": lambda crow, col, values, shape: int4_groups(
        torch.zeros(len(values), 8, dtype=torch.uint8),
        values.half(),
        values.half(),
        crow,
        col,
        (shape[0], 16 * shape[1]),
    ),
    "nmg": lambda crow, col, values, shape: nmg(crow, col, values, shape, 2, 4),
    "csr": lambda crow, col, values, shape: CSR(shape, crow, col).validate("weight"),
    "state": state,
}


def is_topology(crow: list[int], col: list[int], rows: int, columns: int) -> bool:
    """What a CSR topology is, in words rather than in tensors."""
    if len(crow) != rows + 1 or crow[0] != 0 or crow[-1] != len(col):
        return False
    if any(a > b for a, b in pairwise(crow)):
        return False
    cut = [col[a:b] for a, b in pairwise(crow)]
    return all(row == sorted(set(row)) and all(0 <= c < columns for c in row) for row in cut)


@st.composite
def topologies(draw: st.DrawFn) -> tuple[list[int], list[int], Shape]:
    """A right topology."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    cut = draw(st.lists(st.sets(st.integers(0, columns - 1)), min_size=rows, max_size=rows))
    crow = [0]
    for row in cut:
        crow.append(crow[-1] + len(row))
    return crow, [column for row in cut for column in sorted(row)], (rows, columns)


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[list[int], list[int], Shape]:
    """One with a few changes, most of them for the worse."""
    crow, col, (rows, columns) = draw(topologies())
    number = st.one_of(st.integers(-3, 12), st.sampled_from(EXTREMES))
    for _ in range(draw(st.integers(1, 3))):
        array = draw(st.sampled_from([crow, col]))
        place = draw(st.integers(0, max(0, len(array) - 1)))
        what = draw(st.sampled_from(["write", "drop", "insert", "swap", "repeat"]))
        if what == "write" and array:
            array[place] = draw(number)
        elif what == "drop" and array:
            del array[place]
        elif what == "insert":
            array.insert(place, draw(number))
        elif what == "swap" and len(array) > 1:
            array[place - 1], array[place] = array[place], array[place - 1]
        elif what == "repeat" and array:
            array.insert(place, array[place])
    if draw(st.booleans()):
        columns = draw(st.integers(1, columns))
    return crow, col, (rows, columns)


@pytest.mark.parametrize("border", BORDERS)
@given(case=spoiled())
@settings(max_examples=50)
def test_what_is_no_topology_reaches_no_kernel(border: str, case: tuple[list[int], list[int], Shape]) -> None:
    crow, col, shape = case
    if is_topology(crow, col, *shape):
        return
    arrays = torch.tensor(crow, dtype=I32), torch.tensor(col, dtype=I32), torch.ones(len(col))
    empty_layer(shape)

    def reached() -> None:
        raise AssertionError("wrong indices reached the native kernels")

    proof = SimpleNamespace(is_topology=native.library().is_topology)  # nothing else of the library is there
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "kernels", reached)
        patch.setattr(native, "library", lambda: proof)
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            BORDERS[border](*arrays, shape)


@pytest.mark.parametrize("border", [border for border in BORDERS if border != "state"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.uint8, torch.float32, torch.bool])
def test_indices_of_another_type_are_refused(border: str, dtype: torch.dtype) -> None:
    crow, col = torch.tensor([0, 1, 2, 3, 4], dtype=I32), torch.tensor([0, 0, 0, 0], dtype=I32)
    shape = (4, 1)
    for pair in ((crow.to(dtype), col), (crow, col.to(dtype)), (crow[None], col), (crow, col[None])):
        with pytest.raises((ValueError, TypeError)):
            BORDERS[border](*pair, torch.ones(4), shape)


@pytest.mark.parametrize(
    "border",
    ["octets", "slices", "bitmask", "row blocks", "shared columns", "squares", "pairs", "nmg", "state"],
)
@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(5), torch.ones(4, 1), torch.ones(())])
def test_values_must_be_one_for_each_nonzero(border: str, wrong: Tensor) -> None:
    crow, col = torch.tensor([0, 1, 2, 3, 4], dtype=I32), torch.tensor([0, 0, 0, 0], dtype=I32)
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        BORDERS[border](crow, col, wrong, (4, 1))


@given(case=topologies(), batch=st.integers(0, 20), seed=st.integers(0, 99))
def test_what_is_a_topology_is_computed(
    level: str, case: tuple[list[int], list[int], Shape], batch: int, seed: int
) -> None:
    assert is_topology(case[0], case[1], *case[2])
    crow, col, shape = torch.tensor(case[0], dtype=I32), torch.tensor(case[1], dtype=I32), case[2]
    generator = torch.Generator().manual_seed(seed)
    values, x = (
        torch.randn(col.numel(), generator=generator),
        torch.randn(batch, shape[1], generator=generator),
    )
    expected = x @ CSR(shape, crow, col).dense(values).T
    for found in (
        sparse_linear(x, values, prepare(crow, col, shape)),
        octet_rows(values, crow, col, shape).linear(x),
        slice_rows(values, crow, col, shape).linear(x),
        bitmask_rows(values, crow, col, shape).linear(x),
        square_rows(values, crow, col, shape).linear(x),
        row_blocks(crow, col, values, shape, 4).linear(x),
        shared_columns(crow, col, values, shape).linear(x),
    ):
        torch.testing.assert_close(found, expected)
