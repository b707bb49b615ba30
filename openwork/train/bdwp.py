"""BDWP: N:M masks in both directions, so that the backward product is sparse as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openwork.connections import LatentConnections
from openwork.method import Method, method
from openwork.patterns import NM, pattern
from openwork.plan import Plan, Row
from openwork.sparsifier import Sparsifier
from openwork.train.dnw import DNW
from openwork.train.sr_ste import SRSTE


@method(
    paper="Fang et al., Efficient N:M Sparse DNN Training Using Algorithm, Architecture, and Dataflow Co-Design, TCAD 2023, "
    "arXiv 2309.13015",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class BDWP(SRSTE):
    """Bidirectional weight pruning: the same dense weights, pruned along inputs forward and along outputs backward.

    A mask that is N:M along inputs makes ``X W^T`` cheap and leaves ``dY W`` as it was, for that product sums over outputs. So
    there is a mask for each, both of the largest ``|theta|``, chosen anew after every step::

        forward    Y  = X (theta * M_f)^T      M_f: N of every M inputs
        backward   dX = dY (theta * M_b)       M_b: N of every M outputs
                   dtheta = dY^T X             dense, straight through

    Two of the three products of a training step are N:M, which leaves ``(2 N / M + 1) / 3`` of the dense multiplications: half of
    them at 2:8. ``dX`` is the gradient of no function, only near one. The trained network is that of ``M_f``.

    Args:
        backward: ``own`` as above, or ``same``: ``M_f`` in both directions, the exact gradient (:class:`SRSTE`).
        pattern: 2:4; the paper takes 2:8. Where outputs do not divide, a layer keeps ``M_f`` in both directions. Sparser patterns
            leave too little of ``dX``: at 1:8 a small network did not learn.
        decay: 0; the term of :class:`SRSTE` may be added.

    Differences from the authors' code: this is the arithmetic of the method, not its speed, which takes hardware with N:M units
    in both directions. Layers are linear, or convolutions with zero padding.
    """

    backward: Literal["own", "same"] = "own"
    decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backward not in ("own", "same"):
            raise ValueError(f"unknown backward mask {self.backward!r}: choose own or same")
        if not isinstance(pattern(self.pattern), NM):
            raise ValueError(
                f"BDWP prunes n of every m inputs, and of every m outputs; got pattern {self.pattern}: use pattern='2:8'"
            )

    def limits(self) -> Iterable[tuple[Method, Method]]:
        same = dataclasses.replace(self, backward="same")
        yield same, same.reduced_to(SRSTE)
        everything = dataclasses.replace(self, pattern=NM(4, 4))
        yield everything, everything.reduced_to(DNW)

    def start(self, layout: Plan) -> Plan:
        for row in layout.sparse:
            layer = row.weight.module
            padding = getattr(layer, "padding", 0), getattr(layer, "padding_mode", "zeros")
            if self._is_split(row) and (
                type(layer) not in _LAYERS or isinstance(padding[0], str) or padding[1] != "zeros"
            ):
                raise ValueError(
                    f"{row.name} belongs to {layer}, and backward='own' covers linear layers and convolutions whose padding is a "
                    "number of zeros: exclude it, or use backward='same'"
                )
        return layout

    def attached(self, sparsifier: Sparsifier) -> None:
        for row, c in sparsifier.latents():
            if self._is_split(row):
                product = BackwardProduct(c)
                layer = row.weight.module
                sparsifier.handles.append(layer.register_forward_pre_hook(product.before))
                sparsifier.handles.append(layer.register_forward_hook(product.after))

    def _is_split(self, row: Row) -> bool:
        """Whether a parameter has a backward mask of its own. The outputs of a grouped convolution are summed group by group."""
        outputs = row.shape[0] // getattr(row.weight.module, "groups", 1)
        return self.backward == "own" and row.pattern.misfit((row.shape[1], outputs)) is None


class BackwardProduct:
    """Sends the gradient of one layer's inputs through a mask of its own. Hooks: ``before`` and ``after`` the forward pass."""

    def __init__(self, connections: LatentConnections) -> None:
        self.connections = connections
        self._input: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """``theta * M_b``, ``[out, in, *kernel]``."""
        c = self.connections
        chosen = c.pattern.choose(c.latent.abs().transpose(0, 1), 0).transpose(0, 1)
        return torch.where(chosen, c.latent, 0)

    def before(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Cut the inputs off, so that no gradient reaches them through the forward mask."""
        self._input = inputs[0]
        return (inputs[0].detach(), *inputs[1:])

    def after(self, layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Tie them to the outputs again, through the backward mask."""
        x, self._input = self._input, None
        if x is None or not (torch.is_grad_enabled() and x.requires_grad):
            return y
        joined: Tensor = _Joined.apply(x, y, self.weight, layer)  # type: ignore[no-untyped-call]
        return joined


_LAYERS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: lambda shape, weight, dy: dy @ weight,
    nn.Conv1d: nn.grad.conv1d_input,
    nn.Conv2d: nn.grad.conv2d_input,
    nn.Conv3d: nn.grad.conv3d_input,
}
"""The gradient of the inputs of a layer of each type."""


class _Joined(torch.autograd.Function):
    """Outputs as they are; the gradient goes on to them, and to the inputs as if another weight had been there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor, layer: nn.Module) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (weight,), layer = gradients, ctx.saved_tensors, ctx.layer
        of_input, weight = _LAYERS[type(layer)], weight.to(dy.dtype)
        if isinstance(layer, nn.Linear):
            return of_input(ctx.shape, weight, dy).to(ctx.dtype), dy, None, None
        unbatched = dy.dim() < weight.dim()
        shape = (1, *ctx.shape) if unbatched else ctx.shape
        how = layer.stride, layer.padding, layer.dilation, layer.groups
        dx = of_input(shape, weight, dy.unsqueeze(0) if unbatched else dy, *how)
        return dx.view(ctx.shape).to(ctx.dtype), dy, None, None
