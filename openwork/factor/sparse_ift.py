"""Sparse iso-FLOP transformations: larger layers, made so sparse that they cost what the small ones did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import nn

from openwork.layouts.branches import Branches
from openwork.method import method
from openwork.restructuring import Restructuring
from openwork.sparsifier import Training

T = TypeVar("T", bound=Training)


@method(
    paper="Thangarasa et al., Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing Training Efficiency, ICML 2024, "
    "arXiv 2303.11525",
    kind="factor",
)
@dataclass(frozen=True, kw_only=True)
class SparseIFT(Restructuring):
    """Replace a layer by one with more places and as many connections, then train it sparse: best with RigL.

    At sparsity ``s`` a layer of ``i`` inputs (taps included) and ``o`` outputs becomes::

        doped       sparse layer + dense low-rank branch of rank floor(s i o / (i + o))
        factorized  two sparse layers through ceil(i o / ((1 - s) (i + o))) units, norm and ReLU between them
        parallel    round(1 / (1 - s)) sparse copies, each with a norm of its own, summed

    all with the multiplications of the dense layer, up to rounding, once they are sparse::

        form = ow.SparseIFT(form="parallel", sparsity=0.75)
        ow.restructure_(model, form)
        sparsifier = ow.attach(model, optimizer, form.trained_by(ow.RigL, steps=10_000))

    The widening of whole networks (Sparse-Wide) changes how layers fit each other, so it is made where the network is:
    :func:`wide` says how wide, and ``kept=`` the connections of the small network keeps the cost.

    Equal arithmetic is neither equal memory for activations nor equal time without sparse kernels. Linear layers get inputs
    ``[n, features]``; new layers start at random, whatever the weights there were.

    Args:
        form: as above; ``parallel``.
        sparsity: of the new layers; 0.75. At 0 a parallel layer is the old one with a norm.
    """

    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)

    form: Literal["doped", "factorized", "parallel"] = "parallel"
    sparsity: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("doped", "factorized", "parallel"):
            raise ValueError(f"unknown form {self.form!r}: choose doped, factorized or parallel")

    def trained_by(self, cls: type[T], **options: Any) -> T:
        """A training method at this sparsity, alike in all layers, that leaves dense what is dense here."""
        names: dict[str, Any] = {"sparsity": self.sparsity, "allocation": "uniform", "exclude": self.exclude}
        if self.form == "doped":
            names["exclude"] = (*self.exclude, f"*.{DENSE}.*")
        return cls(**{**names, **options})

    def forms(self, layers: Mapping[str, nn.Module]) -> Mapping[str, nn.Module | str]:
        return {name: self._form(name, layer) for name, layer in layers.items()}

    def _form(self, name: str, layer: nn.Module) -> nn.Module | str:
        if isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
            return "stays: a convolution in groups, or with padding that is not zero"
        generator = self.generator(name)
        whole = layer.weight[0].numel() if isinstance(layer.weight, torch.Tensor) else 0
        outputs = _outputs(layer)
        if self.form == "parallel":
            copies = [
                _like(layer, None, outputs, generator) for _ in range(round(1.0 / (1.0 - self.sparsity)))
            ]
            return Branches(*(nn.Sequential(copy, _norm(layer, outputs)) for copy in copies))
        if self.form == "factorized":
            inner = factorized_rank(whole, outputs, self.sparsity)
            first, second = _like(layer, None, inner, generator), _like(layer, inner, outputs, generator)
            return nn.Sequential(first, _norm(layer, inner), nn.ReLU(), second)
        rank = doped_rank(whole, outputs, self.sparsity)
        sparse = _like(layer, None, outputs, generator)
        if not rank:
            return "stays: the low-rank branch would have rank 0"
        low_rank = nn.Sequential()
        low_rank.add_module("right", _like(layer, None, rank, generator, bias=False))
        low_rank.add_module("left", _like(layer, rank, outputs, generator, bias=False))
        made = Branches(sparse)
        made.branches.add_module(DENSE, low_rank)
        return made


DENSE = "low_rank"
"""Name of the branch that stays dense."""


def doped_rank(inputs: int, outputs: int, sparsity: float) -> int:
    """Rank of the dense branch beside a layer at ``sparsity``, so that both have the connections of the dense layer."""
    return math.floor(sparsity * inputs * outputs / (inputs + outputs) + 1e-9)


def factorized_rank(inputs: int, outputs: int, sparsity: float) -> int:
    """Units between two layers at ``sparsity`` that have together the connections of the dense layer."""
    return math.ceil(inputs * outputs / ((1.0 - sparsity) * (inputs + outputs)) - 1e-9)


def wide(sizes: Sequence[int], sparsity: float) -> tuple[int, ...]:
    """Widths of a network with the hidden ones times ``sqrt(1 / (1 - sparsity))``; inputs and outputs stay."""
    factor = math.sqrt(1.0 / (1.0 - sparsity))
    return (sizes[0], *(round(width * factor) for width in sizes[1:-1]), sizes[-1])


def _outputs(layer: nn.Module) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else int(layer.get_parameter("weight").shape[0])


def _norm(layer: nn.Module, features: int) -> nn.Module:
    weight = layer.get_parameter("weight")
    kind = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
    return kind(features, dtype=weight.dtype, device=weight.device)


def _like(
    layer: nn.Module, inputs: int | None, outputs: int, generator: torch.Generator, bias: bool = True
) -> nn.Module:
    """A new layer: of the same inputs, taps and stride; or, given ``inputs``, of one tap. He's deviation, no bias at first."""
    weight = layer.get_parameter("weight")
    where = {"dtype": weight.dtype, "device": weight.device}
    has_bias = bias and getattr(layer, "bias", None) is not None
    made: nn.Module
    if isinstance(layer, nn.Conv2d):
        if inputs is None:
            how = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
            made = nn.utils.skip_init(
                nn.Conv2d, layer.in_channels, outputs, layer.kernel_size, bias=has_bias, **how, **where
            )
        else:
            made = nn.utils.skip_init(nn.Conv2d, inputs, outputs, 1, bias=has_bias, **where)
    else:
        made = nn.utils.skip_init(
            nn.Linear, weight.shape[1] if inputs is None else inputs, outputs, bias=has_bias, **where
        )
    with torch.no_grad():
        new = made.get_parameter("weight")
        drawn = torch.randn(new.shape, generator=generator, dtype=torch.float64)
        new.copy_(drawn * math.sqrt(2.0 / new[0].numel()))
        if has_bias:
            made.get_parameter("bias").zero_()
    return made
