"""S2FT: fine-tune a few heads and channels in place, as dense slices of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from openwork.finetune.roles import ROLES, units_of
from openwork.grid import top_k
from openwork.method import check_fraction, method
from openwork.thawing import Part, Slice, Thawing
from openwork.weights import Weight


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
    queries need follow; each matrix trains its own share, where theirs samples over all layers and may leave one without any; and
    where queries, keys and values, or a gate and what it gates, are made by one matrix, the rows in question are found in it.
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
        axis, inputs, units = units_of(model, weight, role, self.head)
        groups = units.shape[0]
        count = max(1, round(share * groups))
        layer = weight.name.split(".")
        place = ".".join(part for part in layer if part.isdigit())
        pair = "channels" if role in ("down", "up") else "heads"
        if self.select == "random":
            scores = torch.rand(
                groups, generator=self.generator(f"{pair} {place} {groups}"), dtype=torch.float64
            )
        else:
            p = weight.parameter.detach()
            others = [a for a in range(p.dim()) if a != axis]
            norms = p.double().square().sum(others).cpu()[units].sum(1)
            scores = norms if self.select == "largest" else -norms
        index = units[top_k(scores, count)].flatten().sort().values
        return Slice(axis, index.to(weight.parameter.device), inputs)
