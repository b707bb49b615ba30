"""Load: believe nothing in a file before it is proven, and touch no model before all of it is."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TypeVar, overload

from torch import Tensor, nn

from openwork.durable import FileError
from openwork.files.coded import room_for_codes
from openwork.files.container import Container, opened
from openwork.files.filling import check_fit, fill
from openwork.files.header import DTYPES, Entry, Header, array_digest, nearest, read_header
from openwork.files.stubs import found_stubs
from openwork.layouts.stored import Stored, arrays

Path = str | os.PathLike[str]
Module = TypeVar("Module", bound=nn.Module)

GIB = 2**30


@overload
def load(path: Path, into: None = None, *, limit_bytes: int | None = None) -> dict[str, Tensor]: ...
@overload
def load(path: Path, into: Module, *, dense: bool = False) -> Module: ...


def load(
    path: Path, into: Module | None = None, *, dense: bool = False, limit_bytes: int | None = None
) -> dict[str, Tensor] | Module:
    """Read a file written by :func:`openwork.files.save`.

    Everything is verified first: the format, the SHA-256 of every array, that indices are sorted and in
    range, that counts agree, and, with ``into``, that names, shapes and dtypes are the model's. Only then
    does the model change.

    Args:
        path: the file.
        into: the model to fill. An ``nn.Linear`` whose weight was a
            :class:`~openwork.layouts.layer.SparseLayer` when it was saved is replaced by one; make the
            optimizer afterwards. A layer that is one already takes the connections of the file and keeps its
            Parameters. One that was a :class:`~openwork.layouts.group_int4.GroupInt4Linear` becomes that.
        dense: leave every ``nn.Linear`` of ``into`` an ``nn.Linear``.
        limit_bytes: without ``into``, refuse files whose dense tensors take more memory than this together;
            by default 1 GiB or 1024 times the size of the file, whichever is more.

    Returns:
        ``into``, or if that is None, a plain ``state_dict`` of dense tensors on the CPU.

    Raises:
        FileError: naming the tensor that is wrong; ``into`` has not changed.
    """
    with opened(path) as container:
        header = read_layout(container)
        if into is not None:
            with nullcontext() if dense else room_for_codes(into, header, container.where):
                check_fit(into, header, container.where)
                fill(into, _read(container, header), header, dense, container.where)
            return into
        sizes = {n: _unfolded_bytes(e, DTYPES[e.dtype].itemsize) for n, e in header.tensors.items()}
        _check_size(container, sizes, limit_bytes)
        tensors = {name: tensor.dense() for name, tensor in _read(container, header).items()}
        return tensors | {alias: tensors[name] for alias, name in header.shared.items()}


def load_masks(path: Path, *, limit_bytes: int | None = None) -> dict[str, Tensor]:
    """The masks in a file: boolean tensors by plain name, True = kept, of every tensor with a topology.

    Raises:
        FileError: as :func:`load`.
    """
    with opened(path) as container:
        header = read_layout(container)
        _check_size(container, {n: _unfolded_bytes(e, 1) for n, e in header.tensors.items()}, limit_bytes)
        stored = _read(container, header)
        masks = {name: t.topology.mask().view(t.shape) for name, t in stored.items() if t.kept is not None}
        return masks | {alias: masks[name] for alias, name in header.shared.items() if name in masks}


def _check_size(container: Container, sizes: Mapping[str, int], limit: int | None) -> None:
    nbytes = sum(sizes.values())
    limit = max(GIB, 1024 * container.nbytes) if limit is None else limit
    if nbytes > limit:
        raise FileError(
            f"{container.where}: {container.nbytes} bytes that unfold to {nbytes} of dense tensors, above "
            f"the limit of {limit}, most of them of {max(sizes, key=sizes.__getitem__)}; "
            "load it into a model, or pass limit_bytes= if you trust the file"
        )


def read_layout(container: Container) -> Header:
    """Read the header, and prove that the file has the arrays it describes; none has been read yet."""
    where = container.where
    header = read_header(container.metadata, where)
    expected = {}
    for name, entry in header.tensors.items():
        for suffix, array in arrays(entry.layout, entry.shape, DTYPES[entry.dtype], entry.kept).items():
            if name + suffix in expected:
                raise FileError(f"{where}: two tensors claim the array {name + suffix}")
            expected[name + suffix] = array
    for key, (dtype, shape) in expected.items():
        if key not in container.arrays:
            raise FileError(f"{where}: the array {key} is missing{nearest(key, container.arrays)}")
        if container.arrays[key] != (dtype, shape):
            found_dtype, found = container.arrays[key]
            raise FileError(f"{where}: {key} must be {dtype} {list(shape)}, not {found_dtype} {list(found)}")
        if key not in header.sha256:
            raise FileError(f"{where}: no SHA-256 is given for {key}")
    known = expected.keys() | found_stubs(header, container)
    for key in [*container.arrays, *header.sha256]:
        if key not in known:
            raise FileError(f"{where}: the array {key} belongs to no tensor{nearest(key, expected)}")
    return header


def _read(container: Container, header: Header) -> dict[str, Stored]:
    return {name: read_one(container, header, name, entry) for name, entry in header.tensors.items()}


def read_one(container: Container, header: Header, name: str, entry: Entry) -> Stored:
    """Read one tensor, and prove that it is what was written and that its indices are in range."""
    found = {}
    for suffix in arrays(entry.layout, entry.shape, DTYPES[entry.dtype], entry.kept):
        found[suffix] = container.read(name + suffix)
        if array_digest(found[suffix]) != header.sha256[name + suffix]:
            raise FileError(f"{container.where}: {name}{suffix} does not match its SHA-256: it was damaged")
    stored = Stored(name, entry.layout, entry.shape, entry.kept, found)
    if entry.kept is not None:
        try:
            stored.topology  # noqa: B018  (asking for it proves it)
        except ValueError as error:
            raise FileError(f"{container.where}: {error}") from error
    return stored


def _unfolded_bytes(entry: Entry, itemsize: int) -> int:
    """Bytes of a tensor in dense form, or of the row pointers of its topology, which empty rows have too."""
    return max(math.prod(entry.shape) * itemsize, 0 if entry.kept is None else 4 * (entry.shape[0] + 1))


def dense_bytes(entry: Entry) -> int:
    """Bytes of a tensor in dense form."""
    return math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
