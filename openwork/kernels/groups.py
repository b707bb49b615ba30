"""Groups of rows that share columns: the storage of the structured kernels, and the operator that runs them.

Rows are taken `height` at a time. An *entry* is one column of one group, with a weight for each row that has
it; its *pattern* is the set of those rows, bit r for row r. Columns are cut into blocks, and entries stand in
the order [block][group]; what comes inside a group is the business of each kernel. All of them read the same
arrays (csrc/groups.h), so they share one operator. A page a kernel: `row_blocks`, `shared_columns`, `nmg`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import linear, native, reference
from openwork.kernels.execution import is_traced
from openwork.kernels.index import part_count
from openwork.kernels.topology import flat_positions, row_of, validate

ROW_ALIGNMENT = 16
"""Rows at which the work of two threads may be divided, a multiple of every height (csrc/layer.h)."""

PADDING = 64
"""Entries behind the last, so that what is read ahead is ours."""


@dataclass(frozen=True, eq=False)
class Groups:
    """A frozen weight [rows, columns] in groups of rows; made by the pages of the kernels.

    Attributes:
        kernel: `row_blocks`, `shared_columns` or `nmg`.
        shape: (rows, columns) = (outputs, inputs).
        height: rows in a group.
        settings: what the kernel wants to know besides.
        blocks: blocks the columns are cut into.
        arrays: parts int32, the first row of each thread's share; column int32 [entries]; weight float32;
            first int32, where groups begin; and what else the kernel reads. With OPENWORK_NATIVE=0 values
            and positions.
    """

    kernel: str
    shape: tuple[int, int]
    height: int
    settings: list[int]
    blocks: int
    arrays: list[Tensor] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return sum(array.nbytes for array in self.arrays)

    def linear(self, x: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
        """`activation(x W^T + bias)` for x [..., inputs], float32 on the CPU, without gradients.

        Args:
            x: any strides, any number of leading dimensions.
            bias: [outputs].
            activation: one of `linear.ACTIVATIONS`.

        Raises:
            TypeError: another dtype or device.
            ValueError: shapes do not fit, or an unknown activation.
            RuntimeError: a gradient would be needed.
        """
        outputs, inputs = self.shape
        linear.check_linear(x, inputs, outputs, bias, activation)
        for tensor in (x, bias):
            if tensor is not None and (tensor.dtype is not torch.float32 or not tensor.is_cpu):
                raise TypeError(
                    f"Grouped rows multiply float32 on the CPU, found {tensor.dtype} on {tensor.device}."
                )
            if tensor is not None and torch.is_grad_enabled() and tensor.requires_grad:
                raise RuntimeError(
                    "Grouped rows have no gradients: call under torch.no_grad(), or train with "
                    "linear.sparse_linear."
                )
        if not native.enabled():
            values, positions = self.arrays
            return reference.sparse_linear(x, values, positions, self.shape, bias, activation)
        rows = x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), inputs)
        compute = torch.ops.openwork.grouped_linear if is_traced(rows, bias) else _grouped_linear
        y: Tensor = compute(
            rows, bias, self.arrays, outputs, self.height, self.settings, self.blocks, self.kernel, activation
        )
        return y if x.dim() == 2 else y.view(*x.shape[:-1], outputs)


def plain(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> list[Tensor]:
    """The arrays of `Groups` when there are no native kernels: values and flat positions."""
    return [values.clone(), flat_positions(crow, col, shape[1])]


@dataclass(frozen=True, eq=False)
class Entries:
    """The entries of a matrix in groups of `height` rows, by group and then by column.

    Attributes:
        group: int64 [entries].
        column: int64 [entries].
        pattern: int64 [entries], bit r: row r of the group has this column.
        of: int64 [kept], the entry of each nonzero.
        place: int64 [kept], its row in the group.
        groups: number of groups.
    """

    group: Tensor
    column: Tensor
    pattern: Tensor
    of: Tensor
    place: Tensor
    groups: int

    def before(self) -> Tensor:
        """How many rows of its entry come before each nonzero, int64 [kept]; up to eight rows in a group."""
        return _ONES[self.pattern[self.of] & ((1 << self.place) - 1)]


_ONES = torch.tensor([number.bit_count() for number in range(256)])


def entries(crow: Tensor, col: Tensor, shape: tuple[int, int], height: int) -> Entries:
    """The entries of a CSR topology, in memory of the size of what is kept."""
    row, columns = row_of(crow, col), max(1, shape[1])
    place = row % height
    groups, key = -(-shape[0] // height), row // height * columns + col
    if groups * columns <= key.numel():  # counting is quicker than sorting where most places are taken
        sets = torch.zeros(groups * columns, dtype=torch.int64).index_add_(0, key, 1 << place)
        taken = sets != 0
        of, listed = (taken.cumsum(0) - 1)[key], taken.nonzero()[:, 0]
        pattern = sets[listed]
    else:
        listed, of = torch.unique(key, return_inverse=True)
        pattern = torch.zeros_like(listed).index_add_(0, of, 1 << place)
    return Entries(listed // columns, listed % columns, pattern, of, place, groups)


def checked_values(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """`values` contiguous, if topology and values can be held.

    Raises:
        TypeError: the values are not float32 on the CPU.
        ValueError: not a valid topology, or not one value for each nonzero.
    """
    validate(crow, col, shape, "the sparse matrix")
    if values.dtype != torch.float32 or values.device.type != "cpu":
        raise TypeError(f"Grouped rows hold float32 on the CPU, found {values.dtype} on {values.device}.")
    if values.shape != col.shape:
        raise ValueError(
            f"values must be [{col.numel()}], one for each kept weight, found {list(values.shape)}."
        )
    return values.detach().contiguous()


def starts(keys: Tensor, count: int) -> Tensor:
    """Where each of `count` keys begins among the ascending `keys`, and the end of all: int32 [count + 1]."""
    first = torch.zeros(count + 1, dtype=torch.int64)
    first[1:] = torch.bincount(keys, minlength=count).cumsum(0)
    return first.int()


def parts(work: Tensor, height: int, rows: int, kept: int) -> Tensor:
    """The first row of each part, and the end of the last: parts of about equal work, whole cache lines each.

    Args:
        work: [groups], what each group costs.
        height: rows in a group.
        rows: rows in all.
        kept: nonzeros, which decide how many parts are worth while.
    """
    count = part_count(kept)
    done = torch.cat([work.new_zeros(1), work.cumsum(0)]).double()
    share = torch.arange(1, count, dtype=torch.float64) * done[-1] / count
    bounds = torch.searchsorted(done, share) * height
    inner = ((bounds + ROW_ALIGNMENT // 2) // ROW_ALIGNMENT * ROW_ALIGNMENT).clamp(max=rows)
    return torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), rows)]).int()


def padded(array: Tensor, fill: int = 0) -> Tensor:
    """`array` with room behind it."""
    return torch.cat([array, array.new_full((PADDING, *array.shape[1:]), fill)]).contiguous()


_library = torch.library.Library("openwork", "FRAGMENT")
_library.define(
    "grouped_linear(Tensor x, Tensor? bias, Tensor[] arrays, SymInt outputs, int height, int[] settings,"
    " int blocks, str kernel, str activation) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _grouped_linear(
    x: Tensor,
    bias: Tensor | None,
    arrays: list[Tensor],
    outputs: int,
    height: int,
    settings: list[int],
    blocks: int,
    kernel: str,
    activation: str,
) -> Tensor:
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    (batch, inputs), (bounds, column, weight, *rest) = x.shape, arrays
    y = x.new_empty(batch, outputs)
    getattr(native.kernels(), kernel)(
        x.data_ptr(), y.data_ptr(), batch, inputs, outputs, 0 if bias is None else bias.data_ptr(),
        linear.ACTIVATIONS.index(activation), bounds.data_ptr(), bounds.numel() - 1,
        native.threads((weight.numel() + inputs + outputs) * batch), *settings,
        column.data_ptr(), weight.data_ptr(), *(array.data_ptr() for array in rest),
        blocks, -(-outputs // height),
    )  # fmt: skip
    return y


_library.impl("grouped_linear", _grouped_linear, "CPU")
torch.library.register_fake(
    "openwork::grouped_linear",
    lambda x, bias, arrays, outputs, *rest: x.new_empty(x.shape[0], outputs),
    lib=_library,
)
