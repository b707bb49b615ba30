"""What a method that works while a model trains is, and at which moments it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from openwork.growth import random_places
from openwork.initialization import Init
from openwork.method import Method
from openwork.plan import Plan, Row

if TYPE_CHECKING:
    from openwork.sparsifier.sparsifier import Sparsifier


@dataclass(frozen=True, kw_only=True)
class Training(Method):
    """A method that works while a model trains. Steps are optimizer steps, counted from 1.

    Args:
        steps: optimizer steps of the whole run; needed by every method that schedules something.
        init: what kept connections start from, see :data:`openwork.initialization.Init`.
    """

    trains = True
    restores: ClassVar[bool] = False
    """Whether connections that were pruned come back all at once, so that the model is dense for a while."""
    latent: ClassVar[bool] = False
    """Whether pruned weights live on unseen: the optimizer trains them, the network computes without them. Takes memory of the
    size of the dense weights, see :mod:`openwork.connections.latent`."""

    stores: ClassVar[bool] = True
    """Whether it can work on layers that hold only their kept connections, as far as its options allow."""

    steps: int | None = None
    init: Init = "rescale"

    @property
    def growth_needs(self) -> frozenset[str]:
        """What updates look at beyond weights: ``gradient``, ``momentum``, ``activations``."""
        return frozenset()

    @property
    def replaces_step(self) -> bool:
        """Whether an update takes the place of the optimizer's step."""
        return False

    @property
    def redistributes(self) -> bool:
        """Whether connections move from one parameter to another: the plan then says how many each has at the start, and how many
        all have together.
        """
        return False

    @property
    def run_length(self) -> int:
        """``steps``, or an error where it was not given."""
        if self.steps is None or self.steps < 1:
            raise ValueError(
                f"{self.name} schedules its updates over the whole run and does not know its length: give steps=, the number of "
                "optimizer steps you will take"
            )
        return self.steps

    def start(self, layout: Plan) -> Plan:
        """The plan that the initial topology is drawn from, where that is not the plan of the end."""
        return layout

    def topology(self, row: Row, generator: torch.Generator) -> Tensor | None:
        """Sorted positions that are active at the start; None = all of them. By default uniformly random in the row's pattern."""
        grid = row.pattern.grid(row.shape)
        vacant = torch.full((grid.rows,), row.pattern.places(row.shape, row.kept))
        return grid.positions_of(random_places(grid, torch.empty(0, dtype=torch.int64), vacant, generator))

    def due(self, step: int) -> bool:
        """Whether the topology is updated at ``step``."""
        return False

    def attached(self, sparsifier: Sparsifier) -> None:
        """Called once when attached, before the first step."""

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        """Change the topology. Called at steps that are :meth:`due`."""

    def before_step(self, sparsifier: Sparsifier, step: int) -> None:
        """Called before the optimizer takes ``step``: the place to add to gradients."""

    def measures(self, sparsifier: Sparsifier) -> Mapping[str, float]:
        """What the method observes about its own work, by name; shown in :meth:`Sparsifier.summary`."""
        return {}
