"""What passes through a dense linear layer: its inputs and the gradients of its outputs, noted for one step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Taps:
    """Notes pairs ``(x [samples, in], dy [samples, out])`` while it is open.

    Attributes:
        pairs: detached, in order of the backward passes; those of a gradient that ``zero_grad`` has thrown away are dropped
            by :meth:`settle`.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self._layer = layer
        self._handle: RemovableHandle | None = None
        self._gradient: Tensor | None = None
        self._settled = 0

    def open(self) -> None:
        """Start noting, from nothing."""
        self.close()
        self._handle = self._layer.register_forward_hook(self._on_forward)

    def close(self) -> None:
        """Forget everything and let go of the layer."""
        if self._handle is not None:
            self._handle.remove()
        self.pairs.clear()
        self._handle, self._gradient, self._settled = None, None, 0

    def settle(self, gradient: Tensor) -> None:
        """Called when the layer's gradient has been accumulated in ``gradient``."""
        if gradient is not self._gradient:
            del self.pairs[: self._settled]
        self._gradient, self._settled = gradient, len(self.pairs)

    def _on_forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and y.requires_grad):
            return y
        x = inputs[0].detach()
        x = x.reshape(-1, x.shape[-1])
        # A copy, because a hook on a view is lost when the caller's next step works in place, as relu_ does.
        y = y.clone()
        y.register_hook(lambda dy: self.pairs.append((x, dy.detach().reshape(-1, dy.shape[-1]))))
        return y
