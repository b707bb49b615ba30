"""What else a model does to images, besides convolving them, and how that is done to images in blocks.

Each function is one step on blocks (:mod:`openwork.kernels.blocked`); :func:`known` finds the one for a node of a traced model.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from openwork.kernels.blocked import Pair, block, pixel_mean, unblock

RELU = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}
ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
MEAN = {torch.mean, "mean"}
PAD = {F.pad, getattr(torch._C._nn, "pad", F.pad)}
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
PIXELS = ((2, 3), (3, 2), (-2, -1), (-1, -2))


@dataclass(frozen=True)
class Window:
    """A pooling."""

    window: Pair
    stride: Pair
    padding: Pair
    mean: bool


def known(node: fx.Node, module: nn.Module | None) -> Window | Callable[..., Tensor] | None:
    """How to compute a node on blocks; None where that is not known.

    Args:
        node: of a graph with shapes noted, with images among its inputs.
        module: what it calls, if it calls a module.
    """
    if is_relu(node, module):
        return relu
    if module is not None:
        return _window(module) or _mean_of(module)
    if is_add(node):
        return add
    if node.target in MEAN and _axes(_argument(node, 1, "dim")) in PIXELS and "dtype" not in node.kwargs:
        return partial(mean, keepdim=bool(_argument(node, 2, "keepdim")))
    if node.target is torch.cat and _argument(node, 1, "dim") in (1, -3):
        return join
    if node.target is operator.getitem:
        return _stride(node.args[1])
    return _padding(node) if node.target in PAD else None


def does_nothing(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node hands on what it gets, in evaluation mode: also a stride of one, and no padding, as shortcuts have
    where the size stays.
    """
    if module is not None:
        return isinstance(module, NOTHING)
    if node.target is operator.getitem:
        stride = _stride(node.args[1])
        return stride is not None and set(stride.keywords.values()) == {1}
    return (
        node.target in PAD and (padding := _padding(node)) is not None and not any(padding.keywords.values())
    )


def is_relu(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node is a ReLU."""
    return type(module) is nn.ReLU if node.op == "call_module" else node.target in RELU


def is_add(node: fx.Node) -> bool:
    """Whether a node adds two tensors of the same shape."""
    shapes = [part.meta.get("shape") for part in node.args if isinstance(part, fx.Node)]
    alike = len(shapes) == len(node.args) == 2 and shapes[0] is not None and shapes[0] == shapes[1]
    return node.op in ("call_function", "call_method") and node.target in ADD and alike and not node.kwargs


def relu(x: Tensor, *, images: int) -> Tensor:
    """Of every pixel."""
    return torch.relu(x)


def add(x: Tensor, y: Tensor, *, images: int) -> Tensor:
    """Pixel by pixel."""
    return x + y


def mean(x: Tensor, *, images: int, keepdim: bool) -> Tensor:
    """Over rows and columns: ``[images, channels]`` and no blocks, with two axes of one behind if ``keepdim``."""
    found = pixel_mean(x, images)
    return found[:, :, None, None] if keepdim else found


def join(*parts: Tensor, images: int) -> Tensor:
    """Channels behind each other."""
    return torch.cat(parts, 2)


def every(x: Tensor, *, images: int, rows: int, columns: int) -> Tensor:
    """Every so many rows and columns."""
    return x[:, ::rows, :, ::columns].clone(memory_format=torch.contiguous_format)


def more_channels(x: Tensor, *, images: int, before: int, after: int) -> Tensor:
    """With channels of zeros."""
    return F.pad(x, (0, 0, 0, 0, before, after))


def into_blocks(x: Tensor, *, images: int) -> Tensor:
    """From PyTorch's order."""
    return block(x)


def out_of_blocks(x: Tensor, *, images: int) -> Tensor:
    """To PyTorch's order."""
    return unblock(x, images)


def makes_blocks(call: Callable[..., Tensor]) -> bool:
    """Whether the result of a step on blocks is in blocks."""
    return call is not out_of_blocks and not (isinstance(call, partial) and call.func is mean)


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _axes(dim: Any) -> tuple[Any, ...]:
    return tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)


def _pair(number: Any) -> Pair:
    return (int(number), int(number)) if isinstance(number, int) else (int(number[0]), int(number[1]))


def _window(module: nn.Module) -> Window | None:
    if type(module) is nn.MaxPool2d:
        unknown = module.ceil_mode or module.return_indices or _pair(module.dilation) != (1, 1)
    elif type(module) is nn.AvgPool2d:
        unknown = module.ceil_mode or module.divisor_override is not None or _pair(module.padding) != (0, 0)
    else:
        return None
    if unknown:
        return None
    sizes = _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)
    return Window(*sizes, isinstance(module, nn.AvgPool2d))


def _mean_of(module: nn.Module) -> Callable[..., Tensor] | None:
    one = type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1), [1, 1])
    return partial(mean, keepdim=True) if one else None


def _stride(index: Any) -> partial[Tensor] | None:
    """``x[:, :, ::rows, ::columns]``."""
    if not (isinstance(index, tuple) and len(index) == 4 and all(isinstance(part, slice) for part in index)):
        return None
    if any(part.start is not None or part.stop is not None for part in index):
        return None
    if index[:2] != (slice(None), slice(None)):
        return None
    rows, columns = (1 if part.step is None else part.step for part in index[2:])
    whole = isinstance(rows, int) and isinstance(columns, int) and rows > 0 and columns > 0
    return partial(every, rows=rows, columns=columns) if whole else None


def _padding(node: fx.Node) -> partial[Tensor] | None:
    """``pad(x, (0, 0, 0, 0, before, after))`` with zeros."""
    pad, rest = _argument(node, 1, "pad"), (_argument(node, 2, "mode"), _argument(node, 3, "value"))
    zeros = rest[0] in (None, "constant") and rest[1] in (None, 0)
    if not (zeros and isinstance(pad, (tuple, list)) and len(pad) == 6 and tuple(pad[:4]) == (0, 0, 0, 0)):
        return None
    before, after = pad[4:]
    return (
        partial(more_channels, before=before, after=after)
        if isinstance(before, int) and isinstance(after, int)
        else None
    )
