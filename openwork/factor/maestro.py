"""Maestro: factors whose components order themselves while training; ranks are learned, and one network holds many."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from openwork.factor.ranks import allocated
from openwork.factorization import importance, lasso_slopes
from openwork.layouts.ordered import Ordered, OrderedConv2d, OrderedLinear
from openwork.method import method
from openwork.regularizer import Regularization, Regularizer
from openwork.restructuring import Restructuring


@method(
    paper="Horvath, Laskaridis, Rajput, Wang, Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, ICML 2024, "
    "arXiv 2308.14929",
    kind="factor",
)
@dataclass(frozen=True, kw_only=True)
class Maestro(Restructuring, Regularization):
    """Train ``W = A B`` with ranks cut at random, so that components stand in order of importance, and let the last ones go::

        ow.restructure_(model, maestro)                             # factors of full rank: the same outputs
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regularizer = ow.regularize(model, optimizer, maestro)      # the user's loop, unchanged
        small = at_ranks(model, ratio=0.3)                          # any size, no further training

    In every step one layer, drawn at random, computes with its first ``b`` components only, ``b`` drawn as well; the others with
    all of theirs. A hierarchical group lasso pulls later components to zero first::

        loss += penalty * sum over b of ||A[:, b:]|| + ||B[b:]||        of all layers

    and every ``shrink`` steps the components go whose importance ``||A[:, b:]|| * ||B[b:]||`` is below ``least``.

    Args:
        penalty: 1e-4; the paper sweeps 1e-6 to 5e-3: larger makes smaller networks.
        least: importance below which components are dropped; 1e-7, as in the paper. A larger one suits short runs.
        shrink: steps between two times; an epoch in the paper.
        hierarchical: as above, or each component on its own.
        exclude: usually the first layer, and the last one of small networks.

    Differences from the authors' code: the loss of the sampled pass alone, as in their released runs. The statistics of batch
    norms belong to the widths they were collected at: run some batches in training mode before using a network at other ranks.
    """

    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)

    penalty: float = 1e-4
    least: float = 1e-7
    shrink: int = 100
    hierarchical: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty < 0 or self.least < 0 or self.shrink < 1:
            raise ValueError(
                f"penalty and least are at least 0, shrink at least 1; got {self.penalty}, {self.least} and {self.shrink}"
            )

    def forms(self, layers: Mapping[str, Any]) -> Mapping[str, nn.Module | str]:
        found: dict[str, nn.Module | str] = {}
        for name, layer in layers.items():
            if not isinstance(layer, nn.Conv2d):
                found[name] = OrderedLinear.from_linear(layer)
            elif layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
                found[name] = "stays: in groups, or padded with more than zeros"
            else:
                found[name] = OrderedConv2d.from_conv(layer)
        return found

    def attached(self, regularizer: Regularizer, state: Mapping[str, Tensor]) -> None:
        layers = ordered(regularizer.model)
        if not layers:
            raise ValueError(
                "the model has no ordered layers: call ow.restructure_(model, method) before making the optimizer"
            )
        saved = {name.removeprefix("rank ") for name in state if name.startswith("rank ")}
        if state and (different := saved ^ layers.keys()):
            raise ValueError(f"only one of model and saved state has {min(different)}")
        for name, layer in layers.items():
            if state:
                narrow_(layer, int(state[f"rank {name}"]), regularizer)
        regularizer.state = dict(state)
        self._note(regularizer, layers)
        if state:
            self._show(regularizer, layers)
        else:
            self._draw(regularizer, layers)

    def before_step(self, regularizer: Regularizer, step: int) -> None:
        if not self.penalty:
            return
        for layer in ordered(regularizer.model).values():
            slopes = lasso_slopes(layer.left.detach(), layer.right.detach(), self.hierarchical)
            for factor, slope in zip((layer.left, layer.right), slopes, strict=True):
                if factor.requires_grad:
                    factor.grad = (
                        self.penalty * slope if factor.grad is None else factor.grad + self.penalty * slope
                    )

    def after_step(self, regularizer: Regularizer, step: int) -> None:
        layers = ordered(regularizer.model)
        if step % self.shrink == 0:
            for layer in layers.values():
                worth = importance(layer.left, layer.right, self.hierarchical)
                above = (worth >= self.least).nonzero()
                narrow_(layer, int(above[-1]) + 1 if len(above) else 1, regularizer)
            self._note(regularizer, layers)
        self._draw(regularizer, layers)

    def measures(self, regularizer: Regularizer) -> Mapping[str, float]:
        return {f"rank of {name}": float(layer.rank) for name, layer in ordered(regularizer.model).items()}

    def _note(self, regularizer: Regularizer, layers: Mapping[str, Ordered]) -> None:
        regularizer.state |= {f"rank {name}": torch.tensor(layer.rank) for name, layer in layers.items()}

    def _draw(self, regularizer: Regularizer, layers: Mapping[str, Ordered]) -> None:
        """The next pair of layer and width, of all there are in random order; once through, they are shuffled anew."""
        ranks = [layer.rank for layer in layers.values()]
        queue = regularizer.state.get("queue", torch.empty(0, dtype=torch.int64))
        if "cut" not in regularizer.state or not len(queue) or int(regularizer.state["pairs"]) != sum(ranks):
            queue = torch.randperm(sum(ranks), generator=regularizer.generator)
        number, i = int(queue[0]), 0
        while number >= ranks[i]:
            number, i = number - ranks[i], i + 1
        regularizer.state |= {
            "queue": queue[1:].clone(),
            "pairs": torch.tensor(sum(ranks)),
            "cut": torch.tensor([i, number + 1]),
        }
        self._show(regularizer, layers)

    def _show(self, regularizer: Regularizer, layers: Mapping[str, Ordered]) -> None:
        which, width = regularizer.state["cut"].tolist()
        for i, layer in enumerate(layers.values()):
            layer.width = width if i == which else None


def ordered(model: nn.Module) -> dict[str, Ordered]:
    """The ordered layers of a model, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, (OrderedLinear, OrderedConv2d))}


@torch.no_grad()
def narrow_(layer: Ordered, rank: int, regularizer: Regularizer | None = None) -> None:
    """Let a layer keep its first components only, in place, and with them the optimizer's state."""
    if rank >= layer.rank:
        return
    layer.width = None if layer.width is None else min(layer.width, rank)
    for p, axis in ((layer.left, 1), (layer.right, 0)):
        shape = p.shape
        held = {} if regularizer is None else regularizer.optimizer.state.get(p, {})
        for key, tensor in held.items():
            if isinstance(tensor, Tensor) and tensor.shape == shape:
                held[key] = tensor.narrow(axis, 0, rank).clone()
        p.grad = None
        p.data = p.data.narrow(axis, 0, rank).clone()


def at_ranks(model: nn.Module, ratio: float) -> nn.Module:
    """A smaller copy: of each layer its first components, of all layers together those that matter most for their size.

    Args:
        model: trained with :class:`Maestro`; not changed.
        ratio: of the numbers in the dense weights that may remain; a layer for which two factors would be larger becomes dense.

    Returns:
        A model of plain layers, which needs nothing of this library but :class:`openwork.LowRankLinear`.

    Raises:
        ValueError: the model has no ordered layers.
    """
    small = copy.deepcopy(model)
    layers = ordered(small)
    if not layers:
        raise ValueError("the model has no ordered layers")
    spectra = {}
    for name, layer in layers.items():
        worth = importance(layer.left, layer.right, hierarchical=False).square()
        full = worth.new_zeros(min(len(layer.left), layer.right.shape[1]))
        full[: len(worth)] = worth.flip(0).cummax(0).values.flip(0)  # a component is kept with all before it
        spectra[name] = (len(layer.left), layer.right.shape[1]), full
    for name, rank in allocated(spectra, ratio).items():
        narrow_(layers[name], rank)
    return settled(small)


def settled(model: nn.Module) -> nn.Module:
    """Replace the ordered layers of a model by plain ones, in place; two factors where that is smaller, else one dense layer."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, (OrderedLinear, OrderedConv2d)):
                setattr(parent, name, child.plain())
    return model.plain() if isinstance(model, (OrderedLinear, OrderedConv2d)) else model
