"""What a method may ask of the connections of one parameter, however they are stored."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork.connections.rewiring import Rewiring
from openwork.grid import Grid, top_k
from openwork.growth import Growth, Tile
from openwork.patterns import Pattern
from openwork.positions import merged, origins, where
from openwork.weights import Weight


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
        self._followers: list[Connections] = []

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
        self._take(self.becoming(positions))

    def follow(self, copy: Connections) -> None:
        """From now on let the connections of a copy of the parameter move with these."""
        copy.release()
        copy.replace(self.positions)
        self._followers.append(copy)

    def becoming(self, positions: Tensor) -> Rewiring:
        """What makes the sorted ``positions`` the active ones. Nothing is changed."""
        return Rewiring(positions, origins(self.positions, positions))

    def _take(self, rewiring: Rewiring) -> None:
        for one in (self, *self._followers):
            one._move(rewiring)

    @abstractmethod
    def _move(self, rewiring: Rewiring) -> None:
        """:meth:`replace`, told where each connection comes from."""

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
            return torch.tensor([int(marked.count_nonzero())], device=marked.device)
        return torch.bincount(self.atoms()[marked] // self.grid.competitors, minlength=self.grid.rows)

    def retain(self, survivors: Tensor) -> None:
        """Keep only the marked places (boolean over :meth:`atoms`)."""
        self.replace(self.grid.positions_of(self.atoms()[survivors]))

    def rewired(
        self, survivors: Tensor, growth: Growth, generator: torch.Generator, vacant: Tensor | None = None
    ) -> Rewiring:
        """What there would be if the places that do not survive were dropped and new ones grown. Nothing is changed.

        Connections that were just dropped may be grown again, as in the reference implementation of RigL; they keep value and
        state then.

        Args:
            survivors: boolean over :meth:`atoms`.
            growth: where new connections go.
            generator: the only source of randomness.
            vacant: int64 ``[rows]``, how many places to grow in each row of the grid; as many as were dropped by default.

        Returns:
            What :meth:`adopt` takes.
        """
        taken = self._remaining(survivors)
        vacant = self.counted(~survivors) if vacant is None else vacant
        return self._joined(survivors, taken, growth.places(self, taken, vacant, generator))

    def _remaining(self, survivors: Tensor) -> Tensor:
        """The sorted places that survive."""
        return self.atoms()[where(survivors)]

    def _joined(self, survivors: Tensor, taken: Tensor, grown: Tensor) -> Rewiring:
        """The places that survive, which are those ``taken``, together with the ``grown`` ones."""
        places = merged(taken, grown)
        return self.becoming(places if self.grid.plain else self.grid.positions_of(places))

    def adopt(self, rewiring: Rewiring, goes_on: Tensor | None = None) -> Rewiring:
        """Do what was planned by :meth:`rewired` or :meth:`becoming` since the last change, see :meth:`replace`.

        Args:
            rewiring: the connections there are to be.
            goes_on: boolean ``[kept]``, which of the connections that are active now keep value and optimizer state; the others
                begin anew even if they are among them. All by default.

        Returns:
            What was done: its :attr:`~Rewiring.fresh` connections are those that are new, or begin anew.
        """
        rewiring = rewiring if goes_on is None else rewiring.beginning_anew(goes_on)
        self._take(rewiring)
        return rewiring

    def remembered(self) -> dict[str, Tensor]:
        """What is known beyond weights and topology, by name, for a checkpoint: what :meth:`recall` takes."""
        return {}

    def recall(self, remembered: Mapping[str, Tensor]) -> None:  # noqa: B027  (most have nothing to recall)
        """Take over what was :meth:`remembered`, once weights and topology are those of the same moment."""

    def forget(self) -> None:
        """Set the optimizer's state of this parameter to zero, that of connections that stay included."""
        for holder, key in self._states():
            holder[key].zero_()

    def _states(self) -> list[tuple[MutableMapping[Any, Any], Any]]:
        """Where the optimizer keeps tensors of the shape of the parameter: the mapping that holds each, and its key there."""
        if self.optimizer is None:
            return []
        parameter = self.weight.parameter
        return _tensors_like(parameter, self.optimizer.state.get(parameter, {}))


def _tensors_like(
    parameter: Tensor, state: MutableMapping[Any, Any]
) -> list[tuple[MutableMapping[Any, Any], Any]]:
    found = []
    for key, held in state.items():
        if isinstance(held, MutableMapping):
            found += _tensors_like(parameter, held)
        elif isinstance(held, Tensor) and held.shape == parameter.shape and held.dim() > 0:
            found.append((state, key))
    return found


def _optimizer_of(parameter: nn.Parameter, optimizers: Sequence[Optimizer]) -> Optimizer | None:
    for optimizer in optimizers:
        if any(parameter is p for group in optimizer.param_groups for p in group["params"]):
            return optimizer
    return None
