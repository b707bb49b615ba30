"""A frozen weight with a part that is trained in place.

The weight stays one dense tensor, and the layer computes with it as ever. Trained is a small parameter that holds the part alone;
what it is after a step is written into the weight when that is next looked at. So optimizer state has the size of the part.

The gradient of the part comes in one of two ways. A plain linear layer with a slice computes only the product that this slice
needs: ``G_S^T X`` for rows, ``G^T X_S`` for columns, of whose inputs only ``X_S`` is kept for backward. Otherwise the dense
gradient of the weight is computed, read where the part is, and dropped at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from openwork.layouts.layer import SparseLayer
from openwork.parametrization import parametrized
from openwork.thawing.part import Part, Scatter, Slice
from openwork.weights import Weight


class ThawedWeight(nn.Module):
    """One weight with a part that is trained. Made by :func:`openwork.thaw_`.

    Attributes:
        values: the part, in float32 at least: the only parameter.
        part: which places these are.
        started: which they were at first; a method may go on with fewer.
        before: the values of those before training.
    """

    values: nn.Parameter

    def __init__(self, weight: Weight, part: Part, keep_zeros: bool = True) -> None:
        super().__init__()
        self.weight = [weight]  # in a list, so that its module is no submodule of this one
        self._original = weight.parameter
        if keep_zeros and isinstance(part, Scatter):
            part = Scatter(part.positions[part.take(weight.parameter) != 0])
        self.part = self.started = part
        self.before = part.take(weight.parameter)
        precise = torch.float64 if self.before.dtype == torch.float64 else torch.float32
        self.values = nn.Parameter(self.before.to(precise, copy=True))
        holds_zeros = isinstance(part, Slice) and keep_zeros and bool((self.before == 0).any())
        self._live: Tensor | None = self.before != 0 if holds_zeros else None
        self._written: object = None
        self._inside = False
        self._undo: list[Callable[[], None]] = []

    @property
    def name(self) -> str:
        """Of the parameter."""
        return self.weight[0].name

    @property
    def parameter(self) -> nn.Parameter:
        """The whole weight; for a layer that holds only its kept connections, their values."""
        return self._original

    def forward(self, frozen: Tensor) -> Tensor:
        """The weight, up to date."""
        self.write()
        if not torch.is_grad_enabled() or self._inside:
            return frozen
        seen: Tensor = _Gathered.apply(self.values, frozen, self)  # type: ignore[no-untyped-call]
        return seen

    def write(self) -> None:
        """Bring the weight up to date."""
        now = id(self.values), self.values._version
        if self._written != now:
            with torch.no_grad():
                self.part.put_(self._original, self.values)
            self._written = now

    def gradient(self, dense: Tensor) -> Tensor:
        """The part of a dense gradient, without what would move a zero."""
        return self.alive(self.part.take(dense).to(self.values.dtype))

    def alive(self, gradient: Tensor) -> Tensor:
        """The gradient of the part without what would move a zero."""
        return gradient if self._live is None else gradient.masked_fill(~self._live, 0)

    def attach(self) -> None:
        """Let the layer see the weight through this, and train the part."""
        weight = self.weight[0]
        module, own = weight.module, weight.name.rpartition(".")[2]
        name = f"{own}_values" if isinstance(module, SparseLayer) else own
        partial = isinstance(self.part, Slice) and is_plain(module)  # parametrized, it is of another class
        self._undo.append(parametrized(module, name, self))
        self._undo.append(module.register_state_dict_pre_hook(self._before_saving).remove)
        if partial:
            self._undo.append(module.register_forward_pre_hook(self._enter).remove)
            self._undo.append(
                module.register_forward_hook(self._leave, with_kwargs=True, always_call=True).remove
            )

    def detach(self) -> None:
        """Let it see the weight plainly again, as it is now."""
        self.write()
        while self._undo:
            self._undo.pop()()

    def narrow_(self, chosen: Tensor) -> None:
        """Go on with some of the single places that are trained; the others stay as they are now.

        Args:
            chosen: boolean of the shape of ``values``.
        """
        assert isinstance(self.part, Scatter)
        self.write()
        self._take_over(Scatter(self.part.positions[chosen]), self.values.detach()[chosen])

    def settled(self) -> Tensor:
        """The values of :attr:`started` as they are now."""
        self.write()
        return self.started.take(self._original)

    def check(self, saved: Mapping[str, Tensor]) -> None:
        """Refuse what :meth:`restore_` could not take over.

        Raises:
            ValueError: it is of another part, or of none.
        """
        fits = saved["weight"].shape == self.before.shape
        if isinstance(self.started, Scatter):
            positions = saved["positions"]
            fits = fits and positions.dtype == torch.int64 and saved["values"].shape == positions.shape
            fits = fits and bool(torch.isin(positions, self.started.positions.cpu()).all())
        else:
            fits = fits and saved["values"].shape == self.before.shape
            fits = fits and torch.equal(saved["index"], self.started.record()["index"].cpu())
        if not fits:
            raise ValueError(
                f"the saved part of {self.name} is not one of this model's: thaw the base that was thawed then"
            )

    def restore_(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from what was saved: the part's record, ``values``, and what was :meth:`settled`."""
        device = self._original.device
        with torch.no_grad():
            self.started.put_(self._original, saved["weight"].to(device))
        part = Scatter(saved["positions"].to(device)) if isinstance(self.started, Scatter) else self.started
        self._take_over(part, saved["values"].to(device, self.values.dtype))

    def stale(self) -> None:
        """Have the weight written anew when it is next looked at."""
        self._written = None

    def _take_over(self, part: Part, values: Tensor) -> None:
        self.part, self.values.grad, self._written = part, None, None
        self.values.data = values.clone()

    def _before_saving(self, *_: Any) -> None:
        self.write()

    def _enter(self, *_: Any) -> None:
        self._inside = True

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], y: Any) -> Any:
        self._inside = False
        if not isinstance(y, Tensor) or not torch.is_grad_enabled():
            return None
        (x,) = (*inputs, *named.values())
        return _Product.apply(y, x, self.values, self)  # type: ignore[no-untyped-call]


def is_plain(module: nn.Module) -> bool:
    """Whether a module computes one product of its input and its weight, and nothing else with it."""
    return type(module) is nn.Linear or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))


class _Gathered(torch.autograd.Function):
    """The weight as it is; of its gradient, the part."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, frozen: Tensor, owner: ThawedWeight) -> Tensor:
        ctx.owner = owner
        return frozen.detach().view_as(frozen)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.owner.gradient(gradients[0]), None, None


class _Product(torch.autograd.Function):
    """The outputs of a layer as they are; of the gradient of its weight, only the slice is computed."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, values: Tensor, owner: ThawedWeight) -> Tensor:
        part = owner.part
        assert isinstance(part, Slice)
        ctx.owner = owner
        ctx.save_for_backward(x.detach().index_select(-1, part.index) if part.inputs else x.detach())
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        owner, (x,), (g,) = ctx.owner, ctx.saved_tensors, gradients
        part = owner.part
        outputs = g if part.inputs else g.index_select(-1, part.index)
        left, right = outputs.reshape(-1, outputs.shape[-1]), x.reshape(-1, x.shape[-1])
        product = left.T.to(owner.values.dtype) @ right.to(owner.values.dtype)
        return g, None, owner.alive(product.T if owner.weight[0].transposed else product), None
