"""Who reads which tensor: every matrix product of a model, watched while it runs.

Layers are recognised by what they compute, not by what they are called: :class:`Reading` watches every matrix product that a
parameter takes part in, so ``nn.Linear``, convolutions, the ``Conv1D`` of Transformers, one expert of a fused 3-D weight, and
plain calls of ``F.linear`` are all seen, and two layers share an input exactly when they read the same tensor.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from openwork.matrices import Matrix

_CONVOLUTIONS: dict[Any, int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_CONVOLUTIONS |= {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_GATHERS = (Tensor.__getitem__, torch.index_select, Tensor.index_select)

Reader = Callable[[Matrix, Tensor, tuple[Any, ...]], None]
"""``(matrix, tokens [n, in], key)``: called whenever a layer reads; equal keys within one batch mean the same tensor."""


class Reading(TorchFunctionMode):
    """While this is entered, every use of the given weights in a matrix product is reported.

    Args:
        layers: the matrices to watch.
        reader: told what each of them reads, as ``[tokens, in]``; patches of an image count as tokens.
        tokens: boolean ``[...]`` that marks which tokens count: padding, where this is False, is left out wherever the leading
            axes of an input, flattened, are those of the mask; also behind a gather of tokens, as experts make it.
    """

    def __init__(self, layers: Iterable[Matrix], reader: Reader, tokens: Tensor | None = None) -> None:
        super().__init__()
        self._layers: dict[tuple[int, int], list[Matrix]] = {}
        for layer in layers:
            self._layers.setdefault(_address(layer.weight.parameter.detach(), layer), []).append(layer)
        self._reader = reader
        self._tokens = None if tokens is None else tokens.flatten().bool()
        self._alive: list[Tensor] = []  # an address identifies a tensor only while that is not freed
        self._gathered: dict[tuple[Any, ...], Tensor] = {}
        self._routed: dict[tuple[int, int], Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear or func is torch._C._nn.linear:
            self._product(_argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight"))
        elif func in _CONVOLUTIONS:
            self._convolution(func, args, kwargs)
        elif func is torch.addmm and len(args) >= 3:
            self._product(args[1], args[2])
        elif func is F.multi_head_attention_forward:
            self._attention(func, args, kwargs)
        result = func(*args, **kwargs)
        if self._tokens is not None and func in _GATHERS:
            self._follow(args, result)
        return result

    def _product(self, x: Tensor, weight: Tensor) -> None:
        for layer in self._layers.get(_location(weight), ()):
            if layer.shape[1] == x.shape[-1]:
                rows = x.detach().reshape(-1, x.shape[-1])
                self._report(layer, x, self._counted(layer, x, rows), ())

    def _convolution(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        weight = _argument(args, kwargs, 1, "weight")
        layers = self._layers.get(_location(weight), [])
        if layers:
            x = _argument(args, kwargs, 0, "input").detach()
            settings = tuple(
                _argument(args, kwargs, i, key, 1 if key != "padding" else 0)
                for i, key in ((3, "stride"), (4, "padding"), (5, "dilation"))
            )
            columns = patches(x, tuple(weight.shape[2:]), *settings)
            for layer in layers:
                wide = math.prod(layer.shape[1:])
                part = columns if layer.of == 1 else columns[:, layer.index * wide : (layer.index + 1) * wide]
                self._report(layer, x, part, (layer.index, *map(str, settings), *weight.shape[2:]))

    def _attention(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """``nn.MultiheadAttention`` is one call. What its first product reads is the query, where that is key and value too;
        what its last one reads is what the call returns when that product is the identity.
        """
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        query, first, last = given["query"], given["in_proj_weight"], given["out_proj_weight"]

        def batch_first(x: Tensor) -> Tensor:
            return x.transpose(0, 1) if x.dim() == 3 else x

        if first is not None and query is given["key"] is given["value"]:
            self._product(batch_first(query), first)
        if _location(last) in self._layers:
            same = torch.eye(len(last), dtype=last.dtype, device=last.device)
            self._product(
                batch_first(func(**{**given, "out_proj_weight": same, "out_proj_bias": None})[0]), last
            )

    def _report(self, layer: Matrix, x: Tensor, rows: Tensor, way: tuple[Any, ...]) -> None:
        self._alive.append(x)
        self._reader(layer, rows, (*identity_of(x), *way))

    def _counted(self, layer: Matrix, x: Tensor, rows: Tensor) -> Tensor:
        if self._tokens is None:
            return rows
        expert = (id(layer.weight.module), layer.index)
        valid = self._gathered.get(identity_of(x))
        if valid is not None and layer.of > 1:
            self._routed[expert] = valid  # what the expert computes inside comes from the same tokens
        elif len(rows) == len(self._tokens) and layer.of == 1:
            valid = self._tokens
        elif layer.of > 1:
            valid = self._routed.get(expert)
        return rows if valid is None or len(valid) != len(rows) else rows[valid]

    def _follow(self, args: Sequence[Any], result: Any) -> None:
        """Tokens picked by their index stay marked."""
        source, index = args[0], args[-1]
        if (
            self._tokens is not None
            and isinstance(index, Tensor)
            and index.dim() == 1
            and index.dtype == torch.int64
            and source.dim() == 2
            and source.shape[0] == len(self._tokens)
            and isinstance(result, Tensor)
        ):
            self._alive.append(result)
            self._gathered[identity_of(result)] = self._tokens[index]


def patches(x: Tensor, kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any) -> Tensor:
    """A convolution's inputs as the rows of a matrix product: ``[n * places, channels * prod(kernel)]``.

    Args:
        x: ``[n, channels, *places]``, or one image without the first axis.
        kernel, stride, padding, dilation: of the convolution; ``padding`` may also be "same" or "valid".
    """
    axes = len(kernel)
    stride, dilation = _each(stride, axes), _each(dilation, axes)
    x = x if x.dim() == axes + 2 else x.unsqueeze(0)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        ends = [(t // 2, t - t // 2) for t in total]
    else:
        ends = [(p, p) for p in _each(padding, axes)]
    x = F.pad(x, [p for pair in reversed(ends) for p in pair])
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        # unfold has no dilation: take the whole span, then every d-th of it
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    places = range(2, 2 + axes)
    return x.permute(0, *places, 1, *range(2 + axes, 2 + 2 * axes)).flatten(1 + axes).flatten(0, axes)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    many = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return many * axes if len(many) == 1 else many


def _argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], index: int, name: str, default: Any = None
) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)


def identity_of(x: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors exactly if they are the same numbers in the same memory, as long as both are alive."""
    version = 0 if x.is_inference() else x._version
    return (x.data_ptr(), x.dtype, tuple(x.shape), x.stride(), version)


def _location(weight: Tensor) -> tuple[int, int]:
    return weight.untyped_storage().data_ptr(), int(weight.storage_offset())


def _address(parameter: Tensor, layer: Matrix) -> tuple[int, int]:
    experts = parameter.dim() == 3 and layer.of > 1 and len(layer.weight.shape) == 2
    return _location(parameter[layer.index] if experts else parameter)
