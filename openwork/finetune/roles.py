"""Who plays which part in a block of a transformer: the matrices of its perceptron and of its attention, by their usual names.

A channel of the perceptron is a row of the first matrix (``up``) and a column of the second (``down``); a head is so many rows of
the ``value`` matrix and columns of the last one (``out``). Models that make queries, keys and values in one matrix, or a gate and
what it gates, hold those rows among others:

===========================  ==============================================================================================
``[query | key | value]``    one after another (GPT-2, Phi, ``nn.MultiheadAttention``)
``[.. query, key, value]``   for one set of keys and values after another (``query_key_value`` of BLOOM, GPT-NeoX, Falcon)
``[gate | up]``              one after another
===========================  ==============================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from openwork.weights import Weight, prunable

_USUAL = {
    "down": "*down_proj* *.fc2.weight *.mlp.c_proj.weight *.dense_4h_to_h.weight *.w2.weight *.lin2.weight "
    "*layer.*[0-9].output.dense.weight *mlp.down.weight",
    "up": "*up_proj* *.fc1.weight *.mlp.c_fc.weight *.dense_h_to_4h.weight *.w3.weight *.lin1.weight "
    "*.intermediate.dense.weight *mlp.up.weight",
    "out": "*.o_proj.weight *.out_proj.weight *.attn.c_proj.weight *.attention.output.dense.weight *.out_lin.weight "
    "*.wo.weight *attention.out.weight *attention.dense.weight",
    "value": "*.v_proj.weight *.attention.self.value.weight *.v_lin.weight *.wv.weight",
}
FUSED = (
    "*.c_attn.weight", "*qkv_proj.weight", "*.Wqkv.weight", "*attention.qkv.weight", "*in_proj_weight", "*query_key_value.weight",
)  # fmt: skip
"""What a matrix is usually called that makes queries, keys and values."""
ROLES: Mapping[str, tuple[str, ...]] = {
    role: (*globs.split(), *(FUSED if role == "value" else ())) for role, globs in _USUAL.items()
}
"""What the second and first matrix of a perceptron, and the last and the value matrix of an attention, are usually called."""

INTERLEAVED = "*query_key_value.weight"
"""What a matrix is called that makes query, key and value of one head after another."""

GATED = "*gate_up_proj*"
"""What a matrix is called that makes a gate and what it gates, one after the other."""


def units_of(model: nn.Module, weight: Weight, role: str, head: int | None) -> tuple[int, bool, Tensor]:
    """The channels or heads of a matrix.

    Args:
        model: that it is in.
        weight: the matrix.
        role: its own.
        head: how wide a head is; asked of the model if None.

    Returns:
        The axis of the parameter along which they lie; whether that is the axis of inputs; and their places on it, int64
        ``[units, width]``.

    Raises:
        ValueError: nothing says how wide a head is, the matrix has no whole number of them, or nothing says which of its rows are
            meant.
    """
    inputs = role in ("down", "out")
    axis = _axis(weight, inputs)
    size = weight.parameter.shape[axis]
    if role == "up" and fnmatchcase(weight.name, GATED):
        if _inputs_first(weight):
            raise ValueError(
                f"{weight.name} holds its experts inputs first, with gates and what they gate in turns for some models and one "
                "after the other for others: leave the role out"
            )
        return axis, inputs, torch.arange(size // 2, size)[:, None]
    if role in ("down", "up"):
        return axis, inputs, torch.arange(size)[:, None]
    width = _head(model, weight) if head is None else head
    rows = _value_rows(model, weight, width) if role == "value" else torch.arange(size)
    if rows.numel() % width:
        raise ValueError(f"{weight.name} has {rows.numel()} columns of heads, no multiple of head={width}")
    return axis, inputs, rows.view(-1, width)


def _value_rows(model: nn.Module, weight: Weight, width: int) -> Tensor:
    """The outputs that are values: all, or those among queries and keys.

    Raises:
        ValueError: the rows are more than those of the heads that the attention's last matrix reads, and no matrix of queries,
            keys and values either.
    """
    size = weight.parameter.shape[_axis(weight, False)]
    last = _last_matrix(model, weight)
    if last is None:
        if fused(weight.name):
            raise ValueError(
                f"{weight.name} makes queries and keys as well, and how many is told by the attention's last matrix, which "
                "none is called as; name the rows' own matrix, or leave the role out"
            )
        return torch.arange(size)
    queries = last.parameter.shape[_axis(last, True)]
    if size <= queries and not fused(weight.name):
        return torch.arange(size)
    values = (size - queries) // 2
    if values < 1 or queries + 2 * values != size or values % width or queries % values:
        raise ValueError(
            f"{weight.name} has {size} outputs, which are not {queries} queries, as {last.name} reads, and as many keys as "
            f"values in heads of {width}"
        )
    if not fnmatchcase(weight.name, INTERLEAVED):
        return torch.arange(size - values, size)
    return torch.arange(size).view(values // width, -1, width)[:, -1].flatten()


def fused(name: str) -> bool:
    """Whether a matrix of this name makes queries and keys beside values."""
    return any(fnmatchcase(name, glob) for glob in FUSED)


def _last_matrix(model: nn.Module, weight: Weight) -> Weight | None:
    """The matrix that reads what the heads of the same attention make."""
    own, _, parameter = weight.name.rpartition(".")
    attention = own if parameter == "in_proj_weight" else own.rpartition(".")[0]
    for other in prunable(model):
        if other.name.startswith(f"{attention}." if attention else "") and any(
            fnmatchcase(other.name, glob) for glob in ROLES["out"]
        ):
            return other
    return None


def _head(model: nn.Module, weight: Weight) -> int:
    size = _of_attention(model, weight)
    if size is None:
        raise ValueError(f"nothing says how wide a head of {weight.name} is: give head=")
    return size


def _axis(weight: Weight, inputs: bool) -> int:
    """The axis of the parameter that inputs or outputs lie along; of a fused weight, those of every expert."""
    if weight.parameter.dim() == 3 and len(weight.shape) == 2:
        return 2 if inputs != _inputs_first(weight) else 1
    return int(inputs != weight.transposed)


def _inputs_first(weight: Weight) -> bool:
    """Whether the experts of a fused weight are held ``[in, out]`` each."""
    return bool(getattr(weight.module, "is_transposed", False))


def _of_attention(model: nn.Module, weight: Weight) -> int | None:
    """The width of a head: ``head_dim`` of the attention itself or of the configuration, or width / heads."""
    own: Any = model.get_submodule(weight.name.rpartition(".")[0].rpartition(".")[0])
    configuration: Any = getattr(model, "config", None)
    text = configuration.get_text_config() if hasattr(configuration, "get_text_config") else configuration
    for told in (weight.module, own, text):
        if isinstance(size := getattr(told, "head_dim", None), int):
            return size
    heads = getattr(own, "heads", None) or getattr(text, "num_attention_heads", None)
    return getattr(text, "hidden_size", weight.shape[1]) // heads if isinstance(heads, int) else None
