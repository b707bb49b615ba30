"""Low-rank updates of sparse weights: LoRA and DoRA, and what becomes of the zeros when an update is merged.

``A [rank, in]`` and ``B [out, rank]`` are trained, the weight ``W`` with its mask ``M`` is not; ``s = alpha / rank``.

==============  =======================  ================================  ===========================================
kind            while training           merged                            zeros
==============  =======================  ================================  ===========================================
``lora``        ``W + s BA``             not where a weight is pruned      lost, so it stays beside the weight
``lora_prune``  ``W + s BA``             ``W + s (BA) * M``                kept; the outputs jump at the merge
``project``     ``W + s BA``             the largest of ``W + s BA``       as many; other ones; the outputs jump
``mask_lora``   ``W + s (BA) * M``       the same                          kept; the merge is exact
``scale_lora``  ``W * (BA)``             the same                          kept by construction; the merge is exact
==============  =======================  ================================  ===========================================

A weight and its update are here; all adapters of a model in :mod:`openwork.finetune.adapters`.

E. Hu et al., LoRA, ICLR 2022, arXiv 2106.09685; S. Liu et al., DoRA, ICML 2024, arXiv 2402.09353; masked and multiplicative
forms: M. Zimmer et al., PERP, arXiv 2312.15230.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from openwork import patterns
from openwork.layouts.layer import SparseLayer
from openwork.parametrization import parametrized
from openwork.weights import Weight

Kind = Literal["lora", "lora_prune", "project", "mask_lora", "scale_lora"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """How weights are adapted.

    Args:
        kind: what is trained, and how it is merged, as in the table above.
        rank: of the update; 16 as in PERP.
        alpha: the update counts ``alpha / rank``; 32 as in PERP.
        stabilized: ``alpha / sqrt(rank)`` instead (rsLoRA), so that large ranks still learn.
        dora: also train the length of every row (DoRA): ``m * V / |V|`` with ``V`` the adapted weight and ``m = |W|`` of each
            row at first; ``|V|`` counts as a constant in the backward pass.
        seed: of ``A``, drawn uniformly as torch draws a linear layer; ``B`` is zero at first (both are constant for
            ``scale_lora``, so that ``BA`` is all ones).
    """

    kind: Kind = "mask_lora"
    rank: int = 16
    alpha: float = 32.0
    stabilized: bool = False
    dora: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}; got {self.kind!r}")
        if self.rank < 1:
            raise ValueError(f"rank is at least 1; got {self.rank}")

    @property
    def scale(self) -> float:
        """``s``."""
        return self.alpha / (math.sqrt(self.rank) if self.stabilized else self.rank)


class Adapter(nn.Module):
    """The update of one weight, as a function of it. Made by :func:`openwork.adapt_`."""

    a: nn.Parameter
    b: nn.Parameter
    m: nn.Parameter | None

    def __init__(
        self,
        lora: LoRA,
        weight: Weight,
        mask: Tensor | None,
        pattern: patterns.Pattern,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        p = weight.parameter.detach()
        self.lora, self._pattern = lora, pattern
        self._weight: Weight = dataclasses.replace(weight)
        out, inputs = weight.shape[0], math.prod(weight.shape[1:])
        self._topology = weight.module.topology if isinstance(weight.module, SparseLayer) else None
        if self._topology is None:
            found = weight.oriented(p) != 0 if mask is None else mask
            if found.shape != torch.Size(weight.shape) or found.dtype != torch.bool:
                raise ValueError(
                    f"the mask of {weight.name} is boolean {list(weight.shape)}; got {found.dtype} {list(found.shape)}"
                )
            self._mask: Tensor = found.to(p.device)
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        if lora.kind == "scale_lora":
            a = torch.full((lora.rank, inputs), lora.rank**-0.5)
            b = torch.full((out, lora.rank), lora.rank**-0.5)
        else:
            bound = inputs**-0.5
            a = (torch.rand(lora.rank, inputs, generator=generator, dtype=torch.float64) * 2 - 1) * bound
            b = torch.zeros(out, lora.rank)
        self.a, self.b = nn.Parameter(a.to(p.device, dtype)), nn.Parameter(b.to(p.device, dtype))
        self.m = nn.Parameter(self._lengths(self._base(p))) if lora.dora else None

    @property
    def parameter(self) -> nn.Parameter:
        """The weight that is adapted; for a layer that holds only its kept connections, their values."""
        return self._weight.parameter

    def own(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        yield self.a
        yield self.b
        if self.m is not None:
            yield self.m

    def forward(self, parameter: Tensor) -> Tensor:
        """The weight as it is while training."""
        base = self._base(parameter)
        if self.lora.kind == "scale_lora":
            adapted = base * self._product()
        else:
            update = self.lora.scale * self._product()
            adapted = base + (update * self._matrix_mask() if self.lora.kind == "mask_lora" else update)
        if self.m is not None:
            lengths = self._lengths(adapted.detach())
            factor = torch.where(
                lengths == 0, 1.0, self.m / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
            )
            adapted = adapted * (factor[:, None] if self._topology is None else factor[self._topology.rows()])
        return self._held(adapted, parameter)

    def merged(self) -> tuple[Tensor, Tensor]:
        """The weight to merge, in the parameter's own shape, and its mask ``[out, in, *kernel]``."""
        weight = self(self.parameter)
        if self._topology is not None:
            return weight, self._topology.mask().view(self._weight.shape)
        shaped, mask = self._weight.oriented(weight), self._mask
        if self.lora.kind == "lora" and not bool(mask.all()):
            raise ValueError(
                f"merging a plain lora would fill the {int((~mask).sum())} zeros of {self._weight.name}: leave it beside the "
                "weight, or use mask_lora, scale_lora, lora_prune or project"
            )
        if self.lora.kind == "project":
            mask = self._pattern.choose(shaped.abs(), int(mask.sum()))
        return self._weight.restored(shaped.masked_fill(~mask, 0)), mask

    @property
    def module(self) -> nn.Module:
        """The layer that has the weight."""
        return self._weight.module

    def attach(self) -> None:
        """Let the layer compute with the adapted weight."""
        self._undo = parametrized(self.module, self._name(), self)

    def detach(self) -> None:
        """Let it compute with its own again."""
        self._undo()

    def _name(self) -> str:
        name = self._weight.name.rpartition(".")[2]
        return name if self._topology is None else f"{name}_values"

    def _base(self, parameter: Tensor) -> Tensor:
        """The weight as a matrix ``[out, in]``, or the kept values, in the precision of the update."""
        precise = parameter.to(torch.float64 if parameter.dtype == torch.float64 else torch.float32)
        return precise if self._topology is not None else self._weight.oriented(precise).flatten(1)

    def _held(self, adapted: Tensor, parameter: Tensor) -> Tensor:
        if self._topology is None:
            adapted = self._weight.restored(adapted.view(self._weight.shape))
        return adapted.to(parameter.dtype)

    def _product(self) -> Tensor:
        """``BA``, or its entries where connections are kept."""
        if self._topology is None:
            return self.b @ self.a
        return (self.b[self._topology.rows()] * self.a.T[self._topology.col.long()]).sum(1)

    def _matrix_mask(self) -> Tensor | float:
        return self._mask.flatten(1) if self._topology is None else 1.0

    def _lengths(self, weight: Tensor) -> Tensor:
        """Euclidean length of every row."""
        if self._topology is None:
            lengths: Tensor = torch.linalg.vector_norm(weight, dim=1)
            return lengths
        total = weight.new_zeros(self._topology.shape[0])
        squares: Tensor = total.index_add_(0, self._topology.rows(), weight.square())
        return squares.sqrt()
