"""The kept connections of one parameter, masked or stored.

A method sees a parameter only through :class:`Connections`: active connections sorted by position, their values and
gradients, a way to choose others, :meth:`Connections.rewired`, and one to take them over, :meth:`Connections.adopt`. Two
storages implement it:

- :class:`MaskedConnections`: the parameter is an ordinary dense tensor with exact zeros;
- :class:`StoredConnections`: a layer holds only the kept values and their indices, and so does the optimizer.

Everything a method decides is decided here in terms of positions, so both storages take the same decisions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.growth import Growth, Tile
from openwork.layouts.csr import CSR
from openwork.layouts.layer import SparseLayer
from openwork.layouts.linear import SparseLinear
from openwork.patterns import Grid, Groups, Pattern, top_k
from openwork.plan import Weight
from openwork.positions import located, merged, where
from openwork.processes import averaged
from openwork.taps import Taps

TILE = 1 << 21
"""Gradient entries that are in memory at once when a stored layer looks for places to grow."""

MOMENTUM = 0.9
"""Decay of the dense momentum that growth by momentum looks at (Dettmers & Zettlemoyer, 2019)."""


class Connections(ABC):
    """The kept connections of one parameter.

    Attributes:
        weight: the parameter and its place in the model.
        pattern: which masks are legal for it.
        grid: the competition grid of its shape.
    """

    def __init__(self, weight: Weight, pattern: Pattern, optimizers: Sequence[Optimizer]) -> None:
        self.weight = weight
        self.pattern = pattern
        self.grid: Grid = pattern.grid(weight.shape)
        self.optimizer = _optimizer_of(weight.parameter, optimizers)

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def device(self) -> torch.device:
        return self.weight.parameter.device

    @property
    def numel(self) -> int:
        """Connections of the dense parameter."""
        return math.prod(self.weight.shape)

    @property
    @abstractmethod
    def positions(self) -> Tensor:
        """Sorted int64 ``[kept]``: where the active connections are in the flattened ``[out, in, *kernel]`` weight."""

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """``[kept]`` weights of the active connections, in order of position. A copy or a view: do not write."""

    @property
    @abstractmethod
    def gradient(self) -> Tensor:
        """``[kept]`` gradient of the active connections; zeros where there is none."""

    def replace(self, positions: Tensor) -> None:
        """Make the sorted ``positions`` the active ones. Connections that stay keep value and optimizer state bit for bit,
        new ones start with zero in both, and those that leave are zero in both."""
        self._move(positions, *located(self.positions, positions))

    @abstractmethod
    def _move(self, positions: Tensor, index: Tensor, stayed: Tensor) -> None:
        """:meth:`replace`, told which of the new positions are active already, and the places of those among the old."""

    @abstractmethod
    def write(self, positions: Tensor, values: Tensor) -> None:
        """Set the weights of some active connections."""

    @abstractmethod
    def observe(self, on: bool) -> None:
        """From now on (do not) remember what the dense gradient of the coming step needs. Remembered gradients are
        forgotten by either call.
        """

    @abstractmethod
    def gradient_tiles(self) -> Iterator[Tile]:
        """``|dense gradient|`` of all places since :meth:`observe`, tile by tile, see :data:`openwork.growth.Tile`."""

    @abstractmethod
    def momentum_tiles(self) -> Iterator[Tile]:
        """``|dense momentum|`` of all places, tile by tile."""

    @abstractmethod
    def activations(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs ``(x [samples, in], dy [samples, out])`` whose products ``dyᵀ x`` sum to this process's dense gradient since
        :meth:`observe`; ``in`` is that of the weight seen as a matrix ``[out, rest]``."""

    @abstractmethod
    def gradient_at(self, places: Tensor) -> Tensor:
        """``|dense gradient|`` at some sorted places of a plain grid since :meth:`observe`, without the rest of it where the
        storage allows."""

    @abstractmethod
    def before_step(self) -> None:
        """Called before the optimizer steps: the gradient of inactive connections dies here, NaN included."""

    @abstractmethod
    def after_step(self) -> None:
        """Called after the optimizer has stepped: zeros are zero again."""

    @abstractmethod
    def release(self) -> None:
        """Let go of the parameter: no hook of ours is left on it."""

    @property
    def kept(self) -> int:
        """Number of active connections."""
        return int(self.positions.numel())

    @property
    def mask(self) -> Tensor:
        """Boolean mask ``[out, in, *kernel]``, True = active."""
        flat = torch.zeros(self.numel, dtype=torch.bool, device=self.device)
        flat[self.positions] = True
        return flat.view(self.weight.shape)

    def atoms(self) -> Tensor:
        """Sorted int64: the active places of the grid (single connections, blocks or whole groups)."""
        return self.positions if self.grid.plain else self.grid.atoms_of(self.positions).unique()

    def pool(self, scores: Tensor) -> Tensor:
        """Scores of the active places: ``scores`` ``[kept]`` summed over the connections of each, in order of :meth:`atoms`."""
        if self.grid.plain:
            return scores
        atoms, inverse = self.grid.atoms_of(self.positions).unique(return_inverse=True)
        return scores.new_zeros(atoms.numel()).index_add_(0, inverse, scores)

    def strongest(self, count: int) -> Tensor:
        """Boolean over :meth:`atoms`: the ``count`` of largest magnitude, ties to the first."""
        return top_k(self.pool(self.values.abs()), count)

    def strongest_legal(self, kept: int) -> Tensor:
        """Boolean over :meth:`atoms`: the strongest of them that the pattern allows when ``kept`` weights are wanted."""
        places = self.pattern.places(self.weight.shape, kept)
        atoms, strength = self.atoms(), self.pool(self.values.abs())
        if self.grid.rows == 1:
            return top_k(strength, min(places, atoms.numel()))
        everywhere = strength.new_full((self.grid.atoms,), -math.inf)
        everywhere[atoms] = strength
        return top_k(everywhere.view(self.grid.rows, -1), places).flatten()[atoms]

    def counted(self, marked: Tensor) -> Tensor:
        """How many places of each row are marked: int64 ``[rows]`` of a boolean over :meth:`atoms`."""
        if self.grid.rows == 1:
            return marked.sum().view(1)
        return torch.bincount(self.atoms()[marked] // self.grid.competitors, minlength=self.grid.rows)

    def retain(self, survivors: Tensor) -> None:
        """Keep only the marked places (boolean over :meth:`atoms`)."""
        self.replace(self.grid.positions_of(self.atoms()[survivors]))

    def rewired(
        self, survivors: Tensor, growth: Growth, generator: torch.Generator, vacant: Tensor | None = None
    ) -> Tensor:
        """The connections there would be if the places that do not survive were dropped and new ones grown. Nothing is changed.

        Connections that were just dropped may be grown again, as in the reference implementation of RigL; they keep value and
        state then.

        Args:
            survivors: boolean over :meth:`atoms`.
            growth: where new connections go.
            generator: the only source of randomness.
            vacant: int64 ``[rows]``, how many places to grow in each row of the grid; as many as were dropped by default.

        Returns:
            Sorted positions: what :meth:`adopt` takes.
        """
        atoms = self.atoms()
        taken = atoms[where(survivors)]
        vacant = self.counted(~survivors) if vacant is None else vacant
        places = merged(taken, growth.places(self, taken, vacant, generator))
        return places if self.grid.plain else self.grid.positions_of(places)

    def adopt(self, positions: Tensor) -> Tensor:
        """Make the sorted ``positions`` the active ones, see :meth:`replace`.

        Returns:
            Sorted positions of the connections that were not active before.
        """
        index, stayed = located(self.positions, positions)
        self._move(positions, index, stayed)
        return positions[where(~stayed)]

    def remembered(self) -> dict[str, Tensor]:
        """What is known beyond weights and topology, by name, for a checkpoint: what :meth:`recall` takes."""
        return {}

    def recall(self, remembered: Mapping[str, Tensor]) -> None:  # noqa: B027  (most have nothing to recall)
        """Take over what was :meth:`remembered`, once weights and topology are those of the same moment."""

    def forget(self) -> None:
        """Set the optimizer's state of this parameter to zero, that of connections that stay included."""
        for state in self._states().values():
            state.zero_()

    def _states(self) -> dict[str, Tensor]:
        """The optimizer's tensors that have the shape of the parameter."""
        if self.optimizer is None:
            return {}
        parameter = self.weight.parameter
        state = self.optimizer.state.get(parameter, {})
        return {
            k: v
            for k, v in state.items()
            if isinstance(v, Tensor) and v.shape == parameter.shape and v.dim() > 0
        }


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
        is_linear = type(weight.module) is nn.Linear and weight.shape == tuple(parameter.shape)
        self._taps = Taps(weight.module) if activations and is_linear else None
        self.inactive = torch.zeros_like(parameter, dtype=torch.bool)
        self.dense_gradient: Tensor | None = None
        self.momentum = torch.zeros_like(parameter) if momentum else None
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
            self._positions = (~self.weight.oriented(self.inactive)).reshape(-1).nonzero().flatten()
        return self._positions

    @property
    def frozen(self) -> Tensor:
        """Boolean of the parameter's shape: places that have no gradient."""
        return self.inactive

    @property
    def values(self) -> Tensor:
        return self._at(self.weight.parameter.detach(), self.positions)

    @property
    def gradient(self) -> Tensor:
        gradient = self.weight.parameter.grad
        positions = self.positions
        return torch.zeros_like(self.values) if gradient is None else self._at(gradient, positions)

    def _move(self, positions: Tensor, index: Tensor, stayed: Tensor) -> None:
        self._set(positions)
        self.after_step()

    def write(self, positions: Tensor, values: Tensor) -> None:
        flat = self.weight.oriented(self.weight.parameter.detach())
        index = torch.unravel_index(positions, self.weight.shape)
        flat[index] = values.to(flat.dtype)

    def observe(self, on: bool) -> None:
        self.dense_gradient = torch.zeros_like(self.weight.parameter) if on else None
        self._seen_by_autograd = False
        self._accumulator = None
        if self._taps is not None:
            self._taps.open() if on else self._taps.close()

    def activations(self) -> list[tuple[Tensor, Tensor]]:
        if self._taps is not None:
            return self._taps.pairs
        # Of a layer that is no plain matrix only the gradient itself is known: it is its own product with the identity.
        gradient = self.weight.oriented(self._local_gradient()).flatten(1)
        return [(gradient, torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device))]

    def gradient_at(self, places: Tensor) -> Tensor:
        return averaged(self._at(self._local_gradient(), places)).abs_()

    def gradient_tiles(self) -> Iterator[Tile]:
        yield 0, self.grid.pool(self.weight.oriented(self._full_gradient()).abs()).flatten()

    def momentum_tiles(self) -> Iterator[Tile]:
        if self.momentum is None:
            raise RuntimeError(
                f"{self.name} keeps no dense momentum: it was attached for a method that does not grow by it"
            )
        yield 0, self.grid.pool(self.weight.oriented(self.momentum).abs()).flatten()

    def before_step(self) -> None:
        gradient = self.weight.parameter.grad
        if gradient is None:
            return
        if self._seen_by_autograd:
            # Data-parallel training writes the averaged dense gradient back after our hook has seen the local one.
            gradient.masked_fill_(self.frozen, 0)
        else:
            self._on_gradient(self.weight.parameter)
        if self.momentum is not None:
            # One overflow, as loss scaling produces now and then, must not stay in it for ever.
            self.momentum.mul_(MOMENTUM).add_(self._full_gradient().nan_to_num(0, 0, 0))

    def after_step(self) -> None:
        with torch.no_grad():
            self.weight.parameter.masked_fill_(self.inactive, 0)
            for state in self._states().values():
                state.masked_fill_(self.inactive, 0)

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

    def _full_gradient(self) -> Tensor:
        """The dense gradient since :meth:`observe`, averaged over the processes of a data-parallel run."""
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
        with torch.no_grad():
            if self.dense_gradient is not None:
                # Active entries accumulate in .grad itself, until zero_grad makes way for a new tensor; what is masked
                # there must be accumulated here. Both are remembered as autograd gives them, before clipping and unscaling.
                if gradient is self._accumulator:
                    self.dense_gradient = torch.where(self.frozen, self.dense_gradient + gradient, gradient)
                else:
                    self.dense_gradient = gradient.detach().clone()
                self._accumulator = gradient
                if self._taps is not None:
                    self._taps.settle(gradient)
            gradient.masked_fill_(self.frozen, 0)

    def _set(self, positions: Tensor) -> None:
        self._positions = positions
        self.inactive.fill_(True)
        index = torch.unravel_index(positions, self.weight.shape)
        self.weight.oriented(self.inactive)[index] = False

    def _at(self, tensor: Tensor, positions: Tensor) -> Tensor:
        return self.weight.oriented(tensor).reshape(-1)[positions]


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

    def _move(self, positions: Tensor, index: Tensor, stayed: Tensor) -> None:
        grown = where(~stayed)

        def moved(tensor: Tensor) -> Tensor:
            if not tensor.numel():
                return tensor.new_zeros(positions.numel())
            return tensor[index].index_fill_(0, grown, 0)

        parameter = self.layer.weight_values
        states = {key: moved(state) for key, state in self._states().items()}
        gradient = None if parameter.grad is None else moved(parameter.grad)
        parameter.grad = None
        topology = CSR.from_positions(positions, self.layer.matrix_shape)
        self.layer.retopologize_(topology, moved(parameter.detach()))
        parameter.grad = gradient
        if self.optimizer is not None:
            self.optimizer.state.get(parameter, {}).update(states)

    def write(self, positions: Tensor, values: Tensor) -> None:
        at, _ = located(self.positions, positions)
        self.layer.weight_values.detach()[at] = values.to(self.layer.weight_values.dtype)

    def observe(self, on: bool) -> None:
        self.layer.observe = on
        self.layer.observations.clear()
        self._accumulator, self._noted = None, 0
        self._positions = None  # they are remembered for the length of an update, and take room

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


def connect(
    weight: Weight,
    pattern: Pattern,
    optimizers: Sequence[Optimizer],
    *,
    positions: Tensor | None = None,
    momentum: bool = False,
    activations: bool = False,
    masked: type[MaskedConnections] = MaskedConnections,
) -> Connections:
    """The connections of a weight in the storage it has. ``positions`` is the topology of a masked one (None = dense);
    ``momentum`` and ``activations`` say what growth will look at besides the gradient, ``masked`` which kind of masking."""
    if hasattr(weight.parameter, "device_mesh"):
        raise TypeError(
            f"{weight.name} is sharded over processes (a DTensor, as fully_shard makes them), and a topology is chosen over "
            "whole parameters: train with DistributedDataParallel, or make the model sparse before it is sharded"
        )
    if weight.stored:
        return StoredConnections(weight, pattern, optimizers, momentum=momentum)
    return masked(
        weight, pattern, optimizers, positions=positions, momentum=momentum, activations=activations
    )


def _optimizer_of(parameter: nn.Parameter, optimizers: Sequence[Optimizer]) -> Optimizer | None:
    for optimizer in optimizers:
        if any(parameter is p for group in optimizer.param_groups for p in group["params"]):
            return optimizer
    return None
