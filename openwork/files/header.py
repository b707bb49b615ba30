"""What the JSON in a file says, under the key ``openwork`` of the safetensors metadata.

.. code-block:: json

    {"format_version": 1,
     "openwork": "0.1.0",
     "tensors": {"fc.weight": {"layout": "csr", "shape": [512, 784], "dtype": "float32", "kept": 4014},
                 "fc.bias": {"layout": "dense", "shape": [512], "dtype": "float32"}},
     "sparse_layers": ["fc"],
     "shared": {"head.weight": "embedding.weight"},
     "history": [{"method": "magnitude", "sparsity": 0.99}],
     "sha256": {"fc.weight_values": "...", "fc.weight_crow": "...", "fc.weight_col": "...", "fc.bias": "..."}}

``tensors`` are the plain names of the model in its own order; :mod:`openwork.layouts.stored` says which
arrays hold each. ``sparse_layers`` are the modules that were :class:`~openwork.layouts.layer.SparseLayer`;
``shared`` are further names of a tensor that is stored once; ``sha256`` is taken of the bytes of each array.
A second key of the metadata, ``openwork_sha256``, is taken of this text.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterable, Mapping

import msgspec
import torch
from torch import Tensor

from openwork.durable import FileError
from openwork.layouts.stored import LAYOUTS, LayoutName

FORMAT_VERSION = 1
"""The newest version of the header that this openwork reads, and the one it writes."""

KEY, DIGEST_KEY = "openwork", "openwork_sha256"

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16,
        torch.uint8, torch.bool,
    )
}  # fmt: skip
"""Dtypes a file can hold, by torch's names."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One tensor: how it is stored, and what it is."""

    layout: LayoutName
    shape: tuple[int, ...]
    dtype: str
    kept: int | None = None


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the file says about itself."""

    format_version: int
    openwork: str
    tensors: dict[str, Entry]
    sparse_layers: tuple[str, ...]
    shared: dict[str, str]
    history: tuple[dict[str, object], ...]
    sha256: dict[str, str]

    def metadata(self) -> dict[str, str]:
        """The safetensors metadata that carries this header."""
        text = msgspec.json.encode(self).decode()
        return {"format": "pt", KEY: text, DIGEST_KEY: _text_digest(text)}


def array_digest(array: Tensor) -> str:
    """SHA-256 of the bytes of an array on the CPU, row-major and little-endian, in hexadecimal."""
    return hashlib.sha256(array.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _Version(msgspec.Struct):
    format_version: int


class _Loose(msgspec.Struct, forbid_unknown_fields=True):
    """A header whose entries are not looked at yet, so that what is wrong in one is told with its name."""

    format_version: int
    openwork: str
    tensors: dict[str, msgspec.Raw]
    sparse_layers: tuple[str, ...]
    shared: dict[str, str]
    history: tuple[dict[str, object], ...]
    sha256: dict[str, str]


def read_header(metadata: Mapping[str, str], where: str) -> Header:
    """Read and check the header in the metadata of a file; no tensor is looked at.

    Raises:
        FileError: starting with ``where``.
    """
    text = metadata.get(KEY)
    if text is None:
        raise FileError(
            f"{where}: no `{KEY}` header, so this is not a file of openwork.save; "
            "read an ordinary safetensors file with safetensors.torch.load_file"
        )
    try:
        # The version comes first: a newer format may describe, and even hash, everything else differently.
        version = msgspec.json.decode(text, type=_Version).format_version
        if version > FORMAT_VERSION:
            known = f"this openwork reads formats up to {FORMAT_VERSION}"
            raise FileError(f"{where}: written in format {version}, and {known}: update openwork")
        if version < 1:
            raise FileError(f"{where}: there is no format {version}; the first is 1")
        if _text_digest(text) != metadata.get(DIGEST_KEY):
            raise FileError(f"{where}: the header does not match its SHA-256: it was damaged or edited")
        loose = msgspec.json.decode(text, type=_Loose)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FileError(f"{where}: the header is not one of format {FORMAT_VERSION}: {error}") from error
    entries = {name: _entry(name, raw, where) for name, raw in loose.tensors.items()}
    if metadata.keys() != {"format", KEY, DIGEST_KEY} or metadata["format"] != "pt":
        raise FileError(f"{where}: the metadata around the header was damaged: {sorted(metadata)}")
    header = Header(**msgspec.structs.asdict(loose) | {"tensors": entries})
    for alias, name in header.shared.items():
        if name not in entries or alias in entries:
            raise FileError(f"{where}: {alias} cannot be another name of {name}: look at what is listed")
    for module in header.sparse_layers:
        name = header.shared.get(weight_of(module), weight_of(module))
        if name not in entries:
            near = nearest(name, entries)
            raise FileError(f"{where}: {module!r} is declared a sparse layer without a {name}{near}")
        if entries[name].kept is None or len(entries[name].shape) not in (2, 4):
            raise FileError(f"{where}: {name} belongs to a sparse layer and must be a weight with a topology")
    return header


def _entry(name: str, raw: msgspec.Raw, where: str) -> Entry:
    try:
        layout = msgspec.json.decode(raw, type=dict[str, object]).get("layout")
        if isinstance(layout, str) and layout not in LAYOUTS:
            known = ", ".join(LAYOUTS)
            raise FileError(f"{where}: {name} is stored in an unknown layout {layout!r}; known are {known}")
        entry = msgspec.json.decode(raw, type=Entry)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FileError(f"{where}: {name} is not described as in format {FORMAT_VERSION}: {error}") from error
    shape, total = list(entry.shape), math.prod(entry.shape)
    largest = math.prod(size or 1 for size in shape)  # a size of zero must not hide the others
    if entry.dtype not in DTYPES:
        raise FileError(f"{where}: {name} has an unknown dtype {entry.dtype!r}{nearest(entry.dtype, DTYPES)}")
    if any(size < 0 for size in shape) or largest >= 2**62:
        raise FileError(f"{where}: {name} cannot have the shape {shape}")
    if entry.kept is None and entry.layout != "dense":
        raise FileError(f"{where}: {name} is stored as {entry.layout} without saying how many are kept")
    if entry.kept is not None and (len(shape) < 2 or not 0 <= entry.kept <= total):
        raise FileError(f"{where}: {name} of shape {shape} cannot keep {entry.kept} connections")
    return entry


def weight_of(module: str) -> str:
    """Plain name of the weight of a module; the root module is ``""``."""
    return f"{module}.weight" if module else "weight"


def nearest(name: str, names: Iterable[str]) -> str:
    """``"; the nearest is ..."``, or nothing if none is near."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; the nearest is {close[0]!r}" if close else ""
