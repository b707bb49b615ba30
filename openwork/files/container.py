"""The safetensors file itself: written whole or not at all, and checked before it is believed."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openwork.durable import FileError, replacing

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class _Handle(Protocol):
    def get_tensor(self, key: str, /) -> Tensor: ...


class Container(NamedTuple):
    """An open file: its metadata, and the dtype and shape of each array, none of which has been read yet."""

    where: str
    nbytes: int
    metadata: Mapping[str, str]
    arrays: Mapping[str, tuple[torch.dtype | None, tuple[int, ...]]]
    handle: _Handle

    def read(self, key: str) -> Tensor:
        """One array, in memory of its own: what was checked must not change with the file."""
        return self.handle.get_tensor(key).clone()


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Container]:
    """Open a safetensors file, whose table of arrays is proven to fit its size before anything is allocated.

    Raises:
        FileError: there is no such file, or it is not a safetensors file.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"{path}: there is no such file")
    if not path.is_file():
        raise FileError(f"{path}: not a file; name the .safetensors file itself")
    try:
        with safe_open(path, "pt") as handle:
            arrays = {}
            for key in handle.keys():  # noqa: SIM118  (not a mapping)
                view = handle.get_slice(key)
                arrays[key] = _DTYPES.get(view.get_dtype()), tuple(view.get_shape())
            yield Container(str(path), path.stat().st_size, handle.metadata() or {}, arrays, handle)
    except (SafetensorError, OSError) as error:
        if isinstance(error, SafetensorError) and zipfile.is_zipfile(path):
            raise FileError(
                f"{path}: not a safetensors file but a zip archive, as torch.save writes it: read it with torch.load, and "
                "keep it with openwork.save"
            ) from error
        raise FileError(f"{path}: not a whole safetensors file ({error}); fetch or save it again") from error


@contextlib.contextmanager
def opened_together(paths: Sequence[str | os.PathLike[str]]) -> Iterator[Container]:
    """Open the parts of a model that was written in several files, each with the same metadata, as if they were one.

    Raises:
        FileError: as :func:`opened`; also where two parts hold an array of the same name, or do not belong together.
    """
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(opened(path)) for path in paths]
        first = parts[0]
        holder: dict[str, Container] = {}
        for part in parts:
            if part.metadata != first.metadata:
                raise FileError(
                    f"{part.where}: not a part of the model in {first.where}; fetch or save it again"
                )
            for key in part.arrays:
                if holder.setdefault(key, part) is not part:
                    raise FileError(f"{part.where}: {key} is in {holder[key].where} already")
        arrays = {key: part.arrays[key] for key, part in holder.items()}
        where = first.where if len(parts) == 1 else str(Path(first.where).parent)
        yield Container(where, sum(part.nbytes for part in parts), first.metadata, arrays, _Parts(holder))


class _Parts:
    """Reads an array from the part that holds it."""

    def __init__(self, holder: Mapping[str, Container]) -> None:
        self._holder = holder

    def get_tensor(self, key: str) -> Tensor:
        tensor: Tensor = self._holder[key].handle.get_tensor(key)
        return tensor


def write(path: str | os.PathLike[str], arrays: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file under a temporary name beside ``path``; move it there once it is on disk.

    Args:
        path: of the file; a link is followed.
        arrays: on the CPU.
        metadata: text by name.

    Raises:
        FileError: it could not be written; whatever was at ``path`` is still there, whole.
    """
    with replacing(path, sum(array.nbytes for array in arrays.values())) as temporary:
        save_file(_separate(arrays), temporary, dict(metadata))


def _separate(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous arrays, each in a storage of its own, as the format asks for; copied only where needed."""
    separate, storages = {}, set()
    for key, array in arrays.items():
        array = array.contiguous()
        storage = array.untyped_storage()
        if storage.nbytes() != array.nbytes or storage.data_ptr() in storages:
            array = array.clone()
        storages.add(array.untyped_storage().data_ptr())
        separate[key] = array
    return separate
