"""Archives of ``torch.save``, read as carefully as a file of anybody: proven whole, and nothing in them runs.

``torch.load`` skips the checksums that its own archives carry, so a bit that a disk has turned would be trained on; and a tensor
with a stride of zero can say that it is larger than any memory. Both are found here, before anyone computes with what was read.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LARGEST = 2**30
"""Bytes that tensors may take which share their contents, such as those of ``expand``; or ``RATIO`` times the file."""

RATIO = 1024


def read(path: str | os.PathLike[str], classes: Collection[type] = (), *, mmap: bool = False) -> Any:
    """What an archive holds, on the CPU: tensors, plain values, and objects of ``classes``.

    Args:
        path: a file of ``torch.save``.
        classes: dataclasses that may be in it. No other class and no function is looked up, let alone called.
        mmap: leave the contents of tensors in the file until they are needed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not whole, or holds something else.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        _require_whole(path)
        with torch.serialization.safe_globals(list(classes)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        _require_small(content, path.stat().st_size)
    except Exception as error:  # torch says in many ways that a file is none of its own
        raise ValueError(str(error) or type(error).__name__) from error
    return content


def _require_whole(path: Path) -> None:
    """Compare every part with its checksum; refuse archives that ``torch.save`` does not write."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(
            part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size for part in parts
        ):
            raise ValueError("it is compressed, which torch.save never does")
        if sum(part.file_size for part in parts) > path.stat().st_size or len(
            {p.filename for p in parts}
        ) < len(parts):
            raise ValueError("its parts lie on one another")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} does not match its checksum: it was damaged")


def _require_small(content: Any, size: int) -> None:
    """Refuse what would take more memory or time to look at than a file of ``size`` bytes has a right to."""
    limit = max(LARGEST, RATIO * size)
    waiting, nbytes, count = [content], 0, 0
    while waiting:
        found, count = waiting.pop(), count + 1
        if isinstance(found, Tensor):
            nbytes += found.numel() * found.element_size()
        elif isinstance(found, Mapping):
            waiting += [*found.keys(), *found.values()]
        elif isinstance(found, (list, tuple, set)):
            waiting += found
        elif dataclasses.is_dataclass(found):
            waiting += vars(found).values()
        if nbytes > limit:
            raise ValueError(f"{size} bytes that unfold to more than {limit} of tensors")
        if count + len(waiting) > size:  # each takes a byte at least, unless one list stands in many places
            raise ValueError(f"{size} bytes that unfold to more values than that")
