"""Connections of a dense parameter under a mask: pruned entries are exact zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.connections.contract import Connections
from openwork.connections.rewiring import Rewiring
from openwork.connections.taps import Taps
from openwork.growth import Tile
from openwork.patterns import Pattern
from openwork.processes import averaged
from openwork.weights import Weight

MOMENTUM = 0.9
"""Decay of the dense momentum that growth by momentum looks at (Dettmers & Zettlemoyer, 2019)."""


class MaskedConnections(Connections):
    """A dense parameter under a mask: pruned entries are exact zeros.

    The gradient is masked as it is accumulated, so clipping, closures and scalers see only active connections, and once
    more before each step. Masking is by selection, not by product, so a NaN in a pruned place dies there.
    """

    def __init__(
        self,
        weight: Weight,
        pattern: Pattern,
        optimizers: Sequence[Optimizer],
        *,
        positions: Tensor | None = None,
        momentum: bool = False,
        activations: bool = False,
    ) -> None:
        super().__init__(weight, pattern, optimizers)
        parameter = weight.parameter
        is_linear = self._is_linear(weight.module) and weight.shape == tuple(parameter.shape)
        self._taps = Taps(weight.module) if activations and is_linear else None
        self.inactive = torch.zeros_like(self._held(parameter), dtype=torch.bool)
        self.dense_gradient: Tensor | None = None
        self.momentum = torch.zeros_like(self._held(parameter)) if momentum else None
        self._positions: Tensor | None = None
        self._seen_by_autograd = False
        self._accumulator: Tensor | None = None
        if positions is not None:
            self._set(positions)
        self._hook = (
            parameter.register_post_accumulate_grad_hook(self._on_gradient)
            if parameter.requires_grad
            else None
        )

    @property
    def positions(self) -> Tensor:
        if self._positions is None:
            self._positions = (
                (~self.weight.oriented(self._whole(self.inactive))).reshape(-1).nonzero().flatten()
            )
        return self._positions

    @property
    def frozen(self) -> Tensor:
        """Boolean of what this process holds of the parameter: places that have no gradient."""
        return self.inactive

    @property
    def values(self) -> Tensor:
        return self._at(self._whole(self._held(self.weight.parameter)), self.positions)

    @property
    def gradient(self) -> Tensor:
        gradient = self.weight.parameter.grad
        if gradient is None:
            return torch.zeros_like(self.values)
        return self._at(self._whole(self._held(gradient)), self.positions)

    def _move(self, rewiring: Rewiring) -> None:
        self._set(rewiring.positions)
        self.after_step()

    def adopt(self, rewiring: Rewiring, goes_on: Tensor | None = None) -> Rewiring:
        if goes_on is not None:  # what is masked out on the way is zero when it comes back
            self.replace(self.positions[goes_on])
        return super().adopt(rewiring, goes_on)

    def write(self, positions: Tensor, values: Tensor) -> None:
        flat = self.weight.oriented(self.weight.parameter.detach())
        index = torch.unravel_index(positions, self.weight.shape)
        flat[index] = values.to(flat.dtype)

    def observe(self, on: bool) -> None:
        self.dense_gradient = torch.zeros_like(self._held(self.weight.parameter)) if on else None
        self._seen_by_autograd = False
        self._accumulator = None
        if self._taps is not None:
            self._taps.open() if on else self._taps.close()

    def activations(self) -> list[tuple[Tensor, Tensor]]:
        if self._taps is not None:
            return self._taps.pairs
        # Of a layer that is no plain matrix only the gradient itself is known: it is its own product with the identity.
        gradient = self.weight.oriented(self._whole(self._local_gradient())).flatten(1)
        return [(gradient, torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device))]

    def gradient_at(self, places: Tensor) -> Tensor:
        return averaged(self._at(self._local_gradient(), places)).abs_()

    def gradient_tiles(self) -> Iterator[Tile]:
        yield 0, self.grid.pool(self.weight.oriented(self._whole(self._mean_gradient())).abs()).flatten()

    def momentum_tiles(self) -> Iterator[Tile]:
        if self.momentum is None:
            raise RuntimeError(
                f"{self.name} keeps no dense momentum: it was attached for a method that does not grow by it"
            )
        yield 0, self.grid.pool(self.weight.oriented(self._whole(self.momentum)).abs()).flatten()

    def before_step(self) -> None:
        gradient = self.weight.parameter.grad
        if gradient is None:
            return
        if self._seen_by_autograd:
            # Data-parallel training writes the averaged dense gradient back after our hook has seen the local one.
            self._held(gradient).masked_fill_(self.frozen, 0)
        else:
            self._on_gradient(self.weight.parameter)
        if self.momentum is not None:
            # One overflow, as loss scaling produces now and then, must not stay in it for ever.
            self.momentum.mul_(MOMENTUM).add_(self._mean_gradient().nan_to_num(0, 0, 0))

    def after_step(self) -> None:
        with torch.no_grad():
            self._held(self.weight.parameter).masked_fill_(self.inactive, 0)
            for holder, key in self._states():
                self._held(holder[key]).masked_fill_(self.inactive, 0)

    def remembered(self) -> dict[str, Tensor]:
        return {} if self.momentum is None else {"momentum": self.momentum}

    def recall(self, remembered: Mapping[str, Tensor]) -> None:
        if self.momentum is not None:
            self.momentum.copy_(remembered["momentum"])

    def release(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        if self._taps is not None:
            self._taps.close()

    def _is_linear(self, module: nn.Module) -> bool:
        """Whether what passes through the module tells the gradient of its weight."""
        return type(module) is nn.Linear

    def _held(self, tensor: Tensor) -> Tensor:
        """What this process holds of a tensor of the parameter's shape: all of it."""
        return tensor.detach()

    def _whole(self, held: Tensor) -> Tensor:
        """A tensor of the parameter's shape of what the processes hold."""
        return held

    def _mean_gradient(self) -> Tensor:
        """What this process holds of the dense gradient since :meth:`observe`, averaged over the processes of a data-parallel
        run."""
        return averaged(self._local_gradient())

    def _local_gradient(self) -> Tensor:
        if self.dense_gradient is None:
            raise RuntimeError(f"the dense gradient of {self.name} was not observed before it was asked for")
        return self.dense_gradient

    def _on_gradient(self, parameter: Tensor) -> None:
        self._seen_by_autograd = True
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            raise ValueError(
                f"the gradient of {self.name} is a torch.sparse tensor, whose entries cannot be masked: build the embedding with "
                "sparse=False, or exclude it"
            )
        held = self._held(gradient)
        with torch.no_grad():
            if self.dense_gradient is not None:
                # Active entries accumulate in .grad itself, until zero_grad makes way for a new tensor; what is masked
                # there must be accumulated here. Both are remembered as autograd gives them, before clipping and unscaling.
                if gradient is self._accumulator:
                    self.dense_gradient = torch.where(self.frozen, self.dense_gradient + held, held)
                else:
                    self.dense_gradient = held.clone()
                self._accumulator = gradient
                if self._taps is not None:
                    self._taps.settle(gradient)
            held.masked_fill_(self.frozen, 0)

    def _set(self, positions: Tensor) -> None:
        self._positions = positions
        self.inactive.fill_(True)
        index = torch.unravel_index(positions, self.weight.shape)
        self.weight.oriented(self.inactive)[index] = False

    def _at(self, tensor: Tensor, positions: Tensor) -> Tensor:
        return self.weight.oriented(tensor).reshape(-1)[positions]
