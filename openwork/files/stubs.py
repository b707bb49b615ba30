"""A stub stands in a file where a dense weight would: an empty tensor under the name of a weight whose arrays have others.

Programs that know dense weights only look for the name. Where nothing is, some go on with a weight drawn at random, and
tell it in one line among many; transformers does. A tensor of the wrong shape they all refuse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.files.container import Container
from openwork.files.header import Header

_STUB = (torch.uint8, (0,))


def stubs(header: Header, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """One for each tensor of the header that has no array of its own name. They hold no bytes."""
    return {name: torch.empty(_STUB[1], dtype=_STUB[0]) for name in header.tensors if name not in arrays}


def found_stubs(header: Header, container: Container) -> set[str]:
    """Names of the stubs in a file, which may have none; an array with anything in it is no stub."""
    return {
        name
        for name, entry in header.tensors.items()
        if entry.layout != "dense" and container.arrays.get(name) == _STUB
    }
