"""Deep R: connections of fixed sign that random forces push about; one that reaches zero dies and another wakes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.connections import Connections
from openwork.growth import Random
from openwork.method import method
from openwork.patterns import Block, Gates, Groups, pattern
from openwork.positions import located
from openwork.sparsifier import Sparsifier, Training

AWAKE = 1e-12
"""What a connection that wakes starts from, as in the authors' code: just alive."""


@method(
    paper="Bellec et al., Deep Rewiring: Training Very Sparse Deep Networks, ICLR 2018, arXiv 1711.05136",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class DeepR(Training):
    """Deep rewiring: a random walk over weights and topologies, which may rewire at every single step.

    A connection is a strength ``theta`` and a sign ``s``, fixed while it lives; the weight is ``w = s * theta``. After every
    step of the optimizer, with its learning rate::

        theta <- theta - lr * l1 + lr * noise * N(0, 1)           active connections only
        die     those with theta < 0
        wake    as many dormant ones, uniformly at random (in the same row, for patterns with rows), at theta = 1e-12

    so each parameter has exactly its count after every step, and a live weight never crosses zero. The gradient of ``theta`` is
    ``s * dL/dw``, so the optimizer's own step on ``w`` is the step on ``theta``.

    Args:
        l1: pull towards zero; 1e-5 as in the authors' MNIST script.
        noise: standard deviation of the random force; 1e-5 as in that script. Langevin dynamics at temperature T has
            ``lr * noise = sqrt(2 lr T)``.

    Both are multiplied by the learning rate of the parameter's group (by 1 where no optimizer is attached).

    Differences from the authors' code: initial weights keep their signs and a connection that wakes draws one, instead of one
    sign a place for ever, which takes memory of the size of the dense weight. Counts are exact from the start.
    """

    l1: float = 1e-5
    noise: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1 < 0 or self.noise < 0:
            raise ValueError(f"l1 and noise are at least 0; got l1={self.l1}, noise={self.noise}")
        if isinstance(pattern(self.pattern), (Block, Gates, Groups)):
            raise ValueError(
                f"DeepR lets single connections die, and pattern {self.pattern} keeps them together: use 'unstructured', "
                "'fan-in' or n:m"
            )

    def attached(self, sparsifier: Sparsifier) -> None:
        for c in sparsifier.connections.values():
            sparsifier.state[f"signs {c.name}"] = 1 - 2 * (c.values < 0).to(torch.int8)

    def due(self, step: int) -> bool:
        return True

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        for c in sparsifier.trained.values():
            key = f"signs {c.name}"
            sparsifier.state[key] = self._rewire(c, sparsifier.state[key].to(c.device), sparsifier.generator)

    def _rewire(self, c: Connections, signs: Tensor, generator: torch.Generator) -> Tensor:
        """Move, let die and wake; returns the signs of those active then."""
        rate = learning_rate(c)
        theta = signs * c.values - rate * self.l1
        if self.noise:
            force = torch.randn(theta.shape, generator=generator, dtype=torch.float64)
            theta = theta + (rate * self.noise * force).to(theta)
        c.write(c.positions, signs * theta)
        alive = theta >= 0
        if bool(alive.all()):
            return signs
        survivors = c.positions[alive]
        # In one move: a parameter that is resized on the way would leave the buckets of data-parallel training.
        woken = c.adopt(c.rewired(alive, Random(), generator), goes_on=alive).fresh
        drawn = (2 * torch.randint(2, woken.shape, generator=generator) - 1).to(signs)
        c.write(woken, AWAKE * drawn.to(c.values.dtype))
        now = torch.empty_like(signs)
        now[located(c.positions, survivors)[0]] = signs[alive]
        now[located(c.positions, woken)[0]] = drawn
        return now


def learning_rate(connections: Connections) -> float:
    """The present learning rate of a parameter, 1 where no optimizer trains it."""
    groups = connections.optimizer.param_groups if connections.optimizer is not None else []
    parameter = connections.weight.parameter
    return next((float(g["lr"]) for g in groups if any(p is parameter for p in g["params"])), 1.0)
