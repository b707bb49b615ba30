"""Connections of a layer that holds only its kept values and their indices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from openwork.connections.contract import Connections
from openwork.connections.rewiring import Rewiring
from openwork.growth import Tile
from openwork.kernels import native
from openwork.kernels.ranking import AT_ONCE
from openwork.kernels.topology import marked_positions, rewired
from openwork.layouts.csr import CSR
from openwork.layouts.layer import SparseLayer
from openwork.layouts.linear import SparseLinear
from openwork.patterns import Groups, Pattern
from openwork.positions import carried, located
from openwork.processes import averaged
from openwork.weights import Weight

TILE = AT_ONCE
"""Gradient entries that are in memory at once when a stored layer looks for places to grow: the caches still hold them between
the product that makes them and the search, and they are work enough for several threads."""

_ROWS = 16
"""Rows of the gradient that a kernel makes at a time, for each of two threads as many as it has registers for."""


class StoredConnections(Connections):
    """A layer that holds only its kept values and their indices: gradient and optimizer state have that size too."""

    def __init__(
        self, weight: Weight, pattern: Pattern, optimizers: Sequence[Optimizer], *, momentum: bool = False
    ) -> None:
        super().__init__(weight, pattern, optimizers)
        if momentum:
            raise ValueError(
                f"{self.name} holds only its kept connections, and growth by momentum needs the momentum of those that "
                "do not exist: use growth 'gradient' or 'random', or convert the layer with to_dense_ and train it masked"
            )
        assert isinstance(weight.module, SparseLayer)
        self.layer: SparseLayer[Any] = weight.module
        self._positions: tuple[int, Tensor] | None = None
        self._accumulator: Tensor | None = None
        self._noted = 0
        values = self.layer.weight_values
        self._hook = (
            values.register_post_accumulate_grad_hook(self._on_gradient) if values.requires_grad else None
        )

    @property
    def positions(self) -> Tensor:
        version = self.layer.topology_version
        if self._positions is None or self._positions[0] != version:
            self._positions = version, self.layer.topology.positions()
        return self._positions[1]

    @property
    def kept(self) -> int:
        return self.layer.weight_values.numel()

    @property
    def values(self) -> Tensor:
        return self.layer.weight_values.detach()

    @property
    def gradient(self) -> Tensor:
        gradient = self.layer.weight_values.grad
        return torch.zeros_like(self.values) if gradient is None else gradient

    def _move(self, rewiring: Rewiring) -> None:
        parameter, states = self.layer.weight_values, self._states()
        topology = rewiring.topology(self.layer.matrix_shape)
        self._positions = None  # they are remembered for the length of an update, and take room
        for holder, key in states:  # one after the other: never more than one of them is there twice
            holder[key] = carried(holder[key], rewiring.origin)
        gradient = None if parameter.grad is None else carried(parameter.grad, rewiring.origin)
        parameter.grad = None
        self.layer.adopt_(topology, carried(parameter.detach(), rewiring.origin))
        parameter.grad = gradient

    def _remaining(self, survivors: Tensor) -> Tensor:
        if not self._in_one_pass:
            return super()._remaining(survivors)
        topology = self.layer.topology
        return marked_positions(topology.crow, topology.col, topology.shape[1], survivors)

    def _joined(self, survivors: Tensor, taken: Tensor, grown: Tensor) -> Rewiring:
        if not self._in_one_pass:
            return super()._joined(survivors, taken, grown)
        old = self.layer.topology
        crow, col, origin = rewired(old.crow, old.col, old.shape[1], survivors, grown)
        return Rewiring(CSR(old.shape, crow, col), origin)

    @property
    def _in_one_pass(self) -> bool:
        """Whether places are single connections, and the kernels can read where they are."""
        return self.grid.plain and native.enabled() and self.layer.weight_col.is_cpu

    def write(self, positions: Tensor, values: Tensor) -> None:
        at, _ = located(self.positions, positions)
        self.layer.weight_values.detach()[at] = values.to(self.layer.weight_values.dtype)

    def observe(self, on: bool) -> None:
        self.layer.observe = on
        self.layer.observations.clear()
        self._accumulator, self._noted = None, 0

    def activations(self) -> list[tuple[Tensor, Tensor]]:
        self._must_be_observed()
        if isinstance(self.layer, SparseLinear):
            return self.layer.observations
        # As in masked training: what is known of a convolution is its gradient, its own product with the identity.
        gradient = self.layer.gradient_rows(0, self.layer.matrix_shape[0])
        return [(gradient, torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device))]

    def gradient_at(self, places: Tensor) -> Tensor:
        self._must_be_observed()
        return averaged(self.layer.gradient_at(places)).abs_()

    def gradient_tiles(self) -> Iterator[Tile]:
        self._must_be_observed()
        outputs, inputs = self.layer.matrix_shape
        per_output = self.grid.atoms / outputs
        if isinstance(self.pattern, Groups) and self.pattern.axis == 1:
            raise ValueError(
                f"{self.name}: groups of inputs cannot grow in a layer that holds only its kept connections; use masked training"
            )
        height = getattr(self.pattern, "height", 1)
        at_once = max(height, TILE // inputs // height * height)
        at_once = at_once // (_ROWS * height) * _ROWS * height or at_once
        for first in range(0, outputs, at_once):
            last = min(first + at_once, outputs)
            tile = self.layer.gradient_rows(first, last)
            grid = self.pattern.grid((last - first, *self.weight.shape[1:]))
            yield round(first * per_output), grid.pool(averaged(tile).abs_()).flatten()

    def _must_be_observed(self) -> None:
        if not self.layer.observe:
            raise RuntimeError(f"the dense gradient of {self.name} was not observed before it was asked for")

    def momentum_tiles(self) -> Iterator[Tile]:
        raise RuntimeError(f"{self.name} holds only its kept connections and has no dense momentum")

    def before_step(self) -> None:
        """Nothing to mask: connections that do not exist have no gradient."""

    def after_step(self) -> None:
        """Nothing to restore."""

    def release(self) -> None:
        self.observe(False)
        if self._hook is not None:
            self._hook.remove()

    def _on_gradient(self, parameter: Tensor) -> None:
        """Forget what was noted for a gradient that zero_grad has thrown away since."""
        if self.layer.observe:
            if parameter.grad is not self._accumulator:
                del self.layer.observations[: self._noted]
            self._accumulator, self._noted = parameter.grad, len(self.layer.observations)
