"""What is in a file: a table for people, and the same data for programs."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from openwork.files.container import opened
from openwork.files.header import DTYPES
from openwork.files.reading import dense_bytes, read_layout
from openwork.layouts.stored import arrays
from openwork.tables import table


@dataclass(frozen=True)
class Row:
    """One tensor in a file; ``kept`` is None where it has no topology."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    kept: int | None
    nbytes: int
    dense_nbytes: int


@dataclass(frozen=True)
class Report:
    """What a file says about itself. Print it, or read its fields.

    Attributes:
        path: the file.
        nbytes: its size.
        format_version: of the header.
        openwork: the version that wrote it.
        sparse_layers: modules that were :class:`~openwork.layouts.layer.SparseLayer`.
        history: transformations in order.
        rows: the tensors, in the order of the model.
    """

    path: str
    nbytes: int
    format_version: int
    openwork: str
    sparse_layers: tuple[str, ...]
    history: tuple[dict[str, object], ...]
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        header = ("tensor", "shape", "dtype", "layout", "kept", "density", "bytes")
        cells = []
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            kept, density = "", ""
            if row.kept is not None:
                kept, density = str(row.kept), f"{row.kept / max(math.prod(row.shape), 1):.4f}"
            cells.append((row.name, shape, row.dtype, row.layout, kept, density, str(row.nbytes)))
        dense = sum(row.dense_nbytes for row in self.rows)
        size = f"{self.nbytes} bytes" + (f", {self.nbytes / dense:.3f} of dense" if dense else "")
        written = f"format {self.format_version}, written by openwork {self.openwork}"
        return "\n".join([f"{self.path}: {size}, {written}", *table(header, cells)])


def inspect(path: str | os.PathLike[str]) -> Report:
    """Describe a file from its header. No array is read, so no SHA-256 of one is checked; ``load`` does that.

    Raises:
        FileError: it is not a file of openwork, or its header does not describe its arrays.
    """
    with opened(path) as container:
        header = read_layout(container)
    rows = []
    for name, entry in header.tensors.items():
        parts = arrays(entry.layout, entry.shape, DTYPES[entry.dtype], entry.kept).values()
        nbytes = sum(math.prod(shape) * dtype.itemsize for dtype, shape in parts)
        rows.append(Row(name, entry.shape, entry.dtype, entry.layout, entry.kept, nbytes, dense_bytes(entry)))
    return Report(
        path=container.where,
        nbytes=container.nbytes,
        format_version=header.format_version,
        openwork=header.openwork,
        sparse_layers=header.sparse_layers,
        history=header.history,
        rows=tuple(rows),
    )
