"""Layers that watch their backward passes: what it takes to rank a dense gradient that nobody stores."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Observed(nn.Module):
    """Base of layers whose dense gradient can be asked for, in parts, though they have kept weights only.

    Attributes:
        observe: while True, every backward pass through the layer appends to ``observations``.
        observations: pairs (inputs, gradient of the outputs), detached. Whoever turns ``observe`` on clears them.
    """

    observe: bool
    observations: list[tuple[Tensor, Tensor]]

    @abstractmethod
    def gradient_rows(self, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` of the dense gradient that the observations add up to: ``[last - first,
        in * kernel]``, a matrix like that of the topology.
        """

    @abstractmethod
    def gradient_at(self, positions: Tensor) -> Tensor:
        """The same gradient at flat ``positions``, int64, ascending without repeats."""

    def _watch_nothing(self) -> None:
        self.observe = False
        self.observations = []

    def _noted(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        return x, dy

    def _observed(self, x: Tensor, y: Tensor) -> Tensor:
        """``y``; while observing, it will note ``x`` and its own gradient when that arrives."""
        if not (self.observe and y.requires_grad):
            return y
        x = x.detach()

        def note(dy: Tensor) -> None:
            self.observations.append(self._noted(x, dy.detach()))

        # A copy, because a hook on a view is lost when the caller's next step works in place, as relu_ does.
        y = y.clone()
        y.register_hook(note)
        return y
