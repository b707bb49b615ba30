"""The arrays that hold one tensor in a file, in whichever layout takes the fewest bytes.

===========  ==========================================================  ==============================
layout       arrays of a weight ``[out, in]``                            bytes, at ``b`` bytes a value
===========  ==========================================================  ==============================
``dense``    the tensor itself                                           ``out * in * b``
``bitmask``  ``_values [kept]``, ``_bitmask`` uint8 ``[out, in / 8]``    ``kept * b + out * in / 8``
``csr``      ``_values [kept]``, ``_crow`` int32 ``[out + 1]``,          ``kept * (b + 2) + 4 * (out + 1)``
             ``_col`` uint16 ``[kept]``
===========  ==========================================================  ==============================

Longer shapes are seen as ``[out, rest]``. Columns are int32 where ``in`` exceeds 65535. Values stand in
row-major order. Bitmask and CSR cross at a density of 1/16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from openwork.layouts import bitmask
from openwork.layouts.csr import CSR, LARGEST, described

LayoutName = Literal["dense", "bitmask", "csr"]
LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """The ``[out, rest]`` view of a shape of at least two dimensions."""
    return shape[0], math.prod(shape[1:])


def nonzero(weight: Tensor) -> Tensor:
    """True where a weight is not zero, NaN included.

    Pruning by multiplication leaves many a -0.0, which is a zero like any other.
    """
    bits = weight.contiguous().view(_BITS[weight.itemsize])
    if weight.is_floating_point():  # by bits, because torch compares not every 8-bit float
        bits = bits & ((1 << (8 * weight.itemsize - 1)) - 1)
    return bits != 0


def smallest(shape: tuple[int, ...], kept: int, itemsize: int) -> LayoutName:
    """The layout of the fewest bytes; the plainer one among equals."""
    if len(shape) < 2:
        return "dense"
    rows, columns = matrix(shape)
    sizes: dict[LayoutName, int] = {
        "dense": rows * columns * itemsize,
        "bitmask": kept * itemsize + rows * -(-columns // 8),
        "csr": kept * (itemsize + _column_dtype(columns).itemsize) + 4 * (rows + 1),
    }
    if max(rows + 1, columns, kept) > LARGEST:
        del sizes["csr"]
    return min(sizes, key=sizes.__getitem__)


def arrays(
    layout: LayoutName, shape: tuple[int, ...], dtype: torch.dtype, kept: int | None
) -> dict[str, _Array]:
    """Dtype and shape of every array of a layout, by the suffix its name has in the file."""
    if layout == "dense":
        return {"": (dtype, shape)}
    if len(shape) < 2 or kept is None or not 0 <= kept <= math.prod(shape):
        raise ValueError(f"no {layout} layout of shape {list(shape)} keeps {kept}")
    rows, columns = matrix(shape)
    if layout == "bitmask":
        return {"_values": (dtype, (kept,)), "_bitmask": (torch.uint8, (rows, -(-columns // 8)))}
    return {
        "_values": (dtype, (kept,)),
        "_crow": (torch.int32, (rows + 1,)),
        "_col": (_column_dtype(columns), (kept,)),
    }


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in a file.

    Attributes:
        name: its plain name, such as ``encoder.weight``.
        layout: one of :data:`LAYOUTS`.
        shape: shape of the tensor, whatever the layout.
        kept: number of kept connections, or None for a tensor that has no topology. A dense tensor that has
            one keeps exactly its nonzeros.
        arrays: the arrays by suffix, on the CPU.
    """

    name: str
    layout: LayoutName
    shape: tuple[int, ...]
    kept: int | None
    arrays: Mapping[str, Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the values."""
        return self.arrays["" if self.layout == "dense" else "_values"].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @cached_property
    def topology(self) -> CSR:
        """The kept connections of ``[out, rest]``, proven to be in range.

        Raises:
            ValueError: the arrays contradict each other, or the tensor has no topology.
        """
        if self.kept is None:
            raise ValueError(f"{self.name}: stored dense, without a topology")
        rows, columns = matrix(self.shape)
        if self.layout == "csr":
            col = self.arrays["_col"].to(torch.int32)
            return CSR((rows, columns), self.arrays["_crow"], col).validate(self.name)
        if self.layout == "bitmask":
            mask = bitmask.unpack(self.arrays["_bitmask"], columns, self.name)
        else:
            mask = nonzero(self.arrays[""].reshape(rows, columns))
        found = int(mask.sum())
        if found != self.kept:
            raise ValueError(
                f"{self.name}: declared to keep {self.kept} connections, and {found} are marked as kept"
            )
        return CSR.from_mask(mask)

    @cached_property
    def values(self) -> Tensor:
        """The kept values ``[kept]`` in row-major order."""
        if self.layout == "dense":
            return self.arrays[""].flatten()[self.topology.positions()]
        return self.arrays["_values"]

    def dense(self) -> Tensor:
        """The tensor itself, zeros where nothing is kept."""
        if self.layout == "dense":
            return self.arrays[""]
        return self.topology.dense(self.values).view(self.shape)


def store(name: str, weight: Tensor, mask: Tensor | None = None) -> Stored:
    """Store a dense tensor in the smallest layout that loses nothing.

    Args:
        name: plain name, for errors.
        weight: any shape; only tensors of two or more dimensions are ever stored sparse.
        mask: boolean tensor of the same shape, True = kept; None = whatever is not zero. A kept weight may be
            zero. In a sparse layout the kept weights keep their bits, and pruned ones come back as +0.0.

    Raises:
        ValueError: the mask has another shape or dtype, or prunes a weight that is not zero.
    """
    weight = weight.detach().cpu()
    if mask is None:
        if weight.ndim < 2:
            return store_as_is(name, weight)
        kept = nonzero(weight)
        if smallest(tuple(weight.shape), int(kept.sum()), weight.itemsize) == "dense":
            return store_as_is(name, weight)
    elif mask.dtype != torch.bool or mask.shape != weight.shape or mask.ndim < 2:
        raise ValueError(
            f"{name}: a weight {list(weight.shape)} of two or more dimensions has a boolean mask of that "
            f"shape, not {described(mask)}"
        )
    else:
        kept = mask.cpu()
        lost = int(nonzero(weight)[~kept].sum())
        if lost:
            raise ValueError(
                f"{name}: {lost} weights that the mask prunes are not zero, and would be lost; "
                "multiply by the mask first"
            )
    topology = CSR.from_mask(kept.reshape(matrix(tuple(weight.shape))))
    return store_values(name, weight[kept], topology, tuple(weight.shape))


def store_as_is(name: str, tensor: Tensor) -> Stored:
    """Store a tensor of any shape and dtype dense, without a topology."""
    return Stored(name, "dense", tuple(tensor.shape), None, {"": tensor.detach().cpu().contiguous()})


def store_values(name: str, values: Tensor, topology: CSR, shape: tuple[int, ...] | None = None) -> Stored:
    """Store kept values in the smallest layout that loses nothing.

    Args:
        name: plain name.
        values: ``[kept]``, row-major.
        topology: of the ``[out, rest]`` view.
        shape: shape of the tensor, ``topology.shape`` if None.
    """
    values, topology = values.detach().cpu().contiguous(), topology.to("cpu")
    shape = topology.shape if shape is None else shape
    layout = smallest(shape, topology.kept, values.itemsize)
    if layout == "dense":
        if bool(nonzero(values).all()):
            return Stored(name, "dense", shape, topology.kept, {"": topology.dense(values).view(shape)})
        layout = "bitmask"  # a kept zero would look pruned in a dense tensor: the topology is worth its bits
    if layout == "bitmask":
        index = {"_bitmask": bitmask.pack(topology.mask())}
    else:
        index = {"_crow": topology.crow, "_col": topology.col.to(_column_dtype(topology.shape[1]))}
    return Stored(name, layout, shape, topology.kept, {"_values": values} | index)


_Array = tuple[torch.dtype, tuple[int, ...]]


def _column_dtype(columns: int) -> torch.dtype:
    return torch.uint16 if columns <= 0xFFFF else torch.int32
