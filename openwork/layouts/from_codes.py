"""Products with a rounded weight as it is held: what the kernels for groups of codes make of any of its forms.

The kernels know groups of 16 neighbouring inputs with a scale and a zero each. Whatever shares a scale is brought into that form:
a row, a tensor or a longer group repeats its scale for every 16 inputs; groups in an order of their own, or shorter ones, move
their inputs together, which costs one gather of the inputs; scales in two levels are computed once. Outliers are a second, sparse
product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from openwork.kernels.code_groups import GROUP, STATISTIC_DTYPES
from openwork.kernels.group_int4 import LARGEST_CODE, Int4Groups, int4_groups, pack_codes
from openwork.kernels.group_int8 import Int8Groups, int8_groups
from openwork.kernels.small_batch import Octets, octet_rows
from openwork.layouts.csr import CSR
from openwork.quantization import FloatGrid, Grid, IntegerGrid, Quantized

MOST_BITS = LARGEST_CODE.bit_length()
"""Of codes that a table can say the numbers of."""


@dataclass(frozen=True, eq=False)
class FromCodes:
    """A weight ``[out, in]`` that is multiplied as codes.

    Attributes:
        groups: the codes, in groups of 16 places.
        places: int64, the input at each place, ``in`` where there is none; None where places are inputs.
        rest: weights beside the codes, if there are any.
    """

    groups: Int4Groups | Int8Groups
    places: Tensor | None
    rest: Octets | None

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x Wᵀ + b``, float32 on the CPU, without gradients; ``x [..., in]``, of any number of leading dimensions."""
        inputs = x if self.places is None else F.pad(x, (0, 1)).index_select(-1, self.places)
        y = self.groups.linear(inputs, bias)
        return y if self.rest is None else y.add_(self.rest.linear(x))

    @property
    def nbytes(self) -> int:
        """Bytes that are read for a product."""
        held = [part for part in (self.groups, self.rest, self.places) if part is not None]
        return sum(part.nbytes for part in held)


def computes(grid: Grid) -> bool:
    """Whether there is a kernel for codes of this grid: integers of any size, floats of up to 4 bits."""
    return isinstance(grid, IntegerGrid) or (isinstance(grid, FloatGrid) and grid.bits <= MOST_BITS)


def from_codes(quantized: Quantized, outliers: tuple[CSR, Tensor] | None = None) -> FromCodes:
    """Lay a rounded weight out for the kernels; groups of 16 that are zero throughout are left out.

    Args:
        quantized: on a grid that has a kernel, see :func:`computes`; scales in the dtype that they are to be held in.
        outliers: topology and values of weights beside the codes.

    Raises:
        ValueError: scales and zeros that make weights which are not finite.
    """
    codes, group_of = quantized.codes, quantized.group_of.long()
    rows, inputs = codes.shape
    places = None if _in_chunks(group_of) else _together(group_of)
    if places is not None:
        group_of = F.pad(group_of, (0, 1))[places]
        group_of = group_of.view(-1, GROUP)[:, 0].repeat_interleave(
            GROUP
        )  # a group's own, where there is no input
        inside = (places < inputs).expand(rows, -1)
        codes = F.pad(codes, (0, 1))[:, places]
    else:
        inside = torch.ones_like(codes, dtype=torch.bool)
    filling = (0, -codes.shape[1] % GROUP)
    at = quantized.at[:, group_of[::GROUP]]
    scale, zero = (t.expand(rows, -1) for t in (at.scale, at.zero))
    cells = F.pad(codes, filling).view(rows, -1, GROUP)
    kept = (F.pad(inside, filling).view_as(cells) & (cells != zero[..., None])).any(2)
    topology = CSR.from_mask(kept)
    dtype = scale.dtype if scale.dtype in STATISTIC_DTYPES else torch.float32
    shape = rows, codes.shape[1]
    arrays = scale[kept].to(dtype), zero[kept].to(dtype), topology.crow, topology.col, shape
    grid = quantized.grid
    groups: Int4Groups | Int8Groups
    if grid.bits > MOST_BITS:
        groups = int8_groups(cells[kept], *arrays)
    else:
        groups = int4_groups(pack_codes(cells[kept]), *arrays, levels=_levels(grid))
    rest = None
    if outliers is not None:
        beside, values = outliers
        rest = octet_rows(values.float(), beside.crow, beside.col, (rows, inputs))
    return FromCodes(groups, places, rest)


def _in_chunks(group_of: Tensor) -> bool:
    """Whether 16 neighbouring inputs share a group, wherever they begin at a multiple of 16."""
    return torch.equal(group_of[::GROUP].repeat_interleave(GROUP)[: group_of.numel()], group_of)


def _together(group_of: Tensor) -> Tensor:
    """The inputs group by group, each group filled up to a multiple of 16 places."""
    counts = torch.bincount(group_of)
    room = -(-counts // GROUP) * GROUP
    order = group_of.argsort(stable=True)
    begin, filled = counts.cumsum(0) - counts, room.cumsum(0) - room
    places = torch.full((int(room.sum()),), group_of.numel())
    places[torch.arange(group_of.numel()) + (filled - begin)[group_of[order]]] = order
    return places


def _levels(grid: Grid) -> Tensor | None:
    if not isinstance(grid, FloatGrid):
        return None
    levels = grid.levels()
    return F.pad(levels, (0, LARGEST_CODE + 1 - levels.numel()))
