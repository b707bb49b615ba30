"""S2FT: fine-tune a few heads and channels in place, as dense slices of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from openwork.grid import top_k
from openwork.method import check_fraction, method
from openwork.thawing import Part, Slice, Thawing
from openwork.weights import Weight

_USUAL = {
    "down": "*down_proj* *.fc2.weight *.mlp.c_proj.weight *.dense_4h_to_h.weight *.w2.weight *.lin2.weight "
    "*layer.*[0-9].output.dense.weight *mlp.down.weight",
    "up": "*up_proj* *.fc1.weight *.mlp.c_fc.weight *.dense_h_to_4h.weight *.w3.weight *.lin1.weight "
    "*.intermediate.dense.weight *mlp.up.weight",
    "out": "*.o_proj.weight *.out_proj.weight *.attn.c_proj.weight *.attention.output.dense.weight *.out_lin.weight "
    "*.wo.weight *attention.out.weight",
    "value": "*.v_proj.weight *.attention.self.value.weight *.v_lin.weight *.wv.weight",
}
ROLES: Mapping[str, tuple[str, ...]] = {role: tuple(globs.split()) for role, globs in _USUAL.items()}
"""What the second and first matrix of a perceptron, and the last and the value matrix of an attention, are usually called."""


@method(
    paper="Yang et al., S2FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity, NeurIPS 2024, "
    "arXiv 2412.06289",
    kind="finetune",
)
@dataclass(frozen=True, kw_only=True)
class S2FT(Thawing):
    """Structured sparse fine-tuning: train some hidden channels of the perceptrons and some heads, in place, and nothing else.

    A channel ``c`` is a column of the second matrix and a row of the first, a head so many columns of the attention's last matrix
    and rows of its value matrix. Of these only the chosen slice ``S`` has gradients and optimizer state::

        down, out   W[:, S] trained     dW = G^T X_S,    only X_S is kept for backward
        up, value   W[S, :] trained     dW = G_S^T X

    Nothing is added to the model, and what was learned is a slice that can be taken away again (:meth:`Thawed.delta`,
    :meth:`Thawed.remove_`). Zeros of a sparse model stay zero. A share of 1 is full fine-tuning of those matrices.

    Args:
        shares: role -> fraction that is trained, at least one channel or head of each matrix. ``{"down": 0.03}`` by default, as
            in the released runs; roles are ``down``, ``up``, ``out`` and ``value``. ``down`` and ``up`` of a layer choose the
            same channels first, as do ``out`` and ``value`` where they have equally many heads.
        names: role -> globs of the weights that have it, where they are not called as usual.
        head: columns of one head; asked of the model by default.
        select: ``random``, as released, or the ``largest`` or ``smallest`` by weight norm.

    Differences from the authors' code: slices are gathered, not moved to the front, so neither biases nor positions nor grouped
    queries need follow; and each matrix trains its own share, where theirs samples over all layers and may leave one without any.
    """

    shares: Mapping[str, float] = field(default_factory=lambda: {"down": 0.03})
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    head: int | None = None
    select: Literal["random", "largest", "smallest"] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        for role, share in self.shares.items():
            check_fraction(f"shares[{role!r}]", share)
        if unknown := [role for role in (*self.shares, *self.names) if role not in ROLES]:
            raise ValueError(f"{unknown[0]!r} is no role: choose from {', '.join(ROLES)}")
        if self.select not in ("random", "largest", "smallest"):
            raise ValueError(f"select is random, largest or smallest; got {self.select!r}")

    def parts(self, model: nn.Module, weights: Sequence[Weight]) -> Mapping[str, Part]:
        found: dict[str, Part] = {}
        for role, share in self.shares.items():
            globs = self.names.get(role, ROLES[role])
            named = [w for w in weights if any(fnmatchcase(w.name, glob) for glob in globs)]
            if share and not named:
                names = ", ".join(w.name for w in weights[:4])
                raise ValueError(
                    f"no weight is called as the {role} matrix of a layer usually is; name it, as in names={{{role!r}: "
                    f"('*.glob',)}}; the weights are {names}, ..."
                )
            for weight in named if share else []:
                found[weight.name] = self._slice(model, weight, role, share)
        if not found:
            raise ValueError("there is nothing to train: give a share to one role at least")
        return found

    def _slice(self, model: nn.Module, weight: Weight, role: str, share: float) -> Slice:
        if weight.stored:
            raise ValueError(
                f"{weight.name} holds only its kept connections, and slices are dense: use to_dense_ first"
            )
        inputs = role in ("down", "out")
        size = self._head(model, weight) if role in ("out", "value") else 1
        p = weight.parameter.detach()
        axis = _axis(weight, inputs)
        groups, rest = divmod(p.shape[axis], size)
        if rest:
            raise ValueError(
                f"{weight.name} has {p.shape[axis]} columns of heads, no multiple of head={size}"
            )
        count = max(1, round(share * groups))
        layer = weight.name.split(".")
        place = ".".join(part for part in layer if part.isdigit())
        pair = "channels" if role in ("down", "up") else "heads"
        if self.select == "random":
            scores = torch.rand(
                groups, generator=self.generator(f"{pair} {place} {groups}"), dtype=torch.float64
            )
        else:
            others = [a for a in range(p.dim()) if a != axis]
            norms = p.double().square().sum(others).view(groups, size).sum(1).cpu()
            scores = norms if self.select == "largest" else -norms
        chosen = top_k(scores, count).nonzero()
        index = (chosen * size + torch.arange(size)).flatten()
        return Slice(axis, index.to(p.device), inputs)

    def _head(self, model: nn.Module, weight: Weight) -> int:
        """How many columns belong to one head."""
        if self.head is not None:
            return self.head
        size = _of_attention(model, weight)
        if size is None:
            raise ValueError(f"nothing says how wide a head of {weight.name} is: give head=")
        return size


def _axis(weight: Weight, inputs: bool) -> int:
    """The axis of the parameter that inputs or outputs lie along; of a fused weight, those of every expert."""
    if weight.parameter.dim() == 3 and len(weight.shape) == 2:
        return 2 if inputs else 1
    return int(inputs != weight.transposed)


def _of_attention(model: nn.Module, weight: Weight) -> int | None:
    """The width of a head: ``head_dim`` of the attention itself or of the configuration, or width / heads."""
    own: Any = model.get_submodule(weight.name.rpartition(".")[0].rpartition(".")[0])
    configuration: Any = getattr(model, "config", None)
    text = configuration.get_text_config() if hasattr(configuration, "get_text_config") else configuration
    for told in (own, text):
        if isinstance(size := getattr(told, "head_dim", None), int):
            return size
    heads = getattr(own, "heads", None) or getattr(text, "num_attention_heads", None)
    return getattr(text, "hidden_size", weight.shape[1]) // heads if isinstance(heads, int) else None
