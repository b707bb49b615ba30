"""Movement pruning: while fine-tuning, keep the weights that move away from zero, not the large ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openwork.adam import descend
from openwork.allocation import Allocation
from openwork.connections import LatentConnections
from openwork.method import Method, method
from openwork.patterns import Unstructured, pattern
from openwork.schedules import Periodic
from openwork.scores import movement
from openwork.selection import best
from openwork.sparsifier import Sparsifier
from openwork.train.gmp import GMP, kept_at


@method(
    paper="Sanh, Wolf, Rush, Movement Pruning: Adaptive Sparsity by Fine-Tuning, NeurIPS 2020, arXiv 2005.07683",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class Movement(GMP):
    """Movement pruning: in fine-tuning a weight matters if it moves away from zero, whatever its size.

    Beside its weights ``theta`` every parameter has scores ``S``, zero at first, and the network computes with the best of them::

        forward   w = M * theta,   M = the kept largest S          fewer and fewer, as the schedule of GMP says
        S         <- S + rate * (-theta * dL/dw)                    everywhere, by Adam
        theta     <- theta - lr * M * dL/dw                         where kept

    The gradient passes the choice of ``M`` straight through, so scores of pruned weights go on learning and a weight may come
    back with the value it had. The model is the sparse one at all times (:mod:`openwork.connections.latent`).

    Args:
        begin, until: the network is dense for the first tenth of the run, as sparse as asked for from 70 % on, as in the paper.
        every: steps between two choices of the mask; 1 as in the paper. A matrix is sorted each time: 10 and more are cheaper.
        rate: learning rate of the scores; 1e-2 as in the paper.
        adaptive: let Adam learn the scores, as the authors do; without, they add up ``-theta * dL/dw`` as the theory has it, and
            their order does not depend on the rate.
        allocation: ``uniform`` (every parameter alike, the paper's choice), or ``global`` to rank the scores of all together.

    At sparsity 0 this is plain fine-tuning. Differences from the authors' code: whatever optimizer is attached moves ``theta``,
    momentum and weight decay of pruned weights included.
    """

    latent: ClassVar[bool] = True

    begin: float = 0.1
    until: float = 0.7
    every: int = 1
    rate: float = 1e-2
    adaptive: bool = True
    allocation: str | Allocation = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate <= 0:
            raise ValueError(f"rate is positive; got {self.rate}")

    def limits(self) -> Iterable[tuple[Method, Method]]:
        if isinstance(pattern(self.pattern), Unstructured):
            dense = dataclasses.replace(self, sparsity=0.0, kept=None, overrides={})
            yield dense, dense.reduced_to(GMP)

    def attached(self, sparsifier: Sparsifier) -> None:
        for _, c in sparsifier.latents():
            sparsifier.state[f"score {c.name}"] = torch.zeros_like(c.latent, dtype=precise(c.latent))

    def due(self, step: int) -> bool:
        return Periodic(self.every, self._window[0], self.run_length, closing=True).due(step)

    def before_step(self, sparsifier: Sparsifier, step: int) -> None:
        for _, c in sparsifier.latents():
            gradient = c.weight.parameter.grad
            if gradient is not None:
                self.learn(sparsifier, c, gradient, step)

    def learn(self, sparsifier: Sparsifier, c: LatentConnections, gradient: Tensor, step: int) -> None:
        """Move the scores of one parameter, and leave in ``gradient``, dense until then, what the optimizer may see of it."""
        name = f"score {c.name}"
        self.descend(sparsifier, name, self.slope(sparsifier, c, gradient, step), step, self.rate)
        gradient.masked_fill_(self.unseen(c), 0)

    def slope(self, sparsifier: Sparsifier, c: LatentConnections, gradient: Tensor, step: int) -> Tensor:
        """The gradient of the loss with respect to the scores, of the parameter's shape."""
        return -movement(c.latent, gradient)

    def unseen(self, c: LatentConnections) -> Tensor:
        """Boolean of the parameter's shape: weights that the network does not see."""
        return c.inactive

    def descend(self, sparsifier: Sparsifier, name: str, slope: Tensor, step: int, rate: float) -> None:
        """Move the tensor ``name`` of the sparsifier's state down its slope."""
        if self.adaptive:
            descend(sparsifier.state, name, slope, step, rate)
        else:
            number = sparsifier.state[name]
            sparsifier.state[name] = number - rate * slope.to(number.dtype).nan_to_num(0, 0, 0)

    def scores(self, sparsifier: Sparsifier, c: LatentConnections) -> Tensor:
        """The scores of one parameter, of its shape."""
        return sparsifier.state[f"score {c.name}"]

    def update(self, sparsifier: Sparsifier, step: int) -> None:
        first, last = self._window
        progress = min((step - first) / (last - first), 1.0) if last > first else 1.0
        chosen = self.chosen(sparsifier, progress)
        for row, c in sparsifier.latents():
            c.replace(chosen[row.name])

    def chosen(self, sparsifier: Sparsifier, progress: float) -> dict[str, Tensor]:
        """Sorted positions of the best, as many as are kept at that ``progress``. A frozen parameter that was included learns no
        scores: its largest weights stay."""
        found = {}
        for row, c in sparsifier.latents():
            learns = c.weight.parameter.requires_grad
            score = self.scores(sparsifier, c) if learns else c.latent.abs()
            if not bool(score.isfinite().all()):
                raise FloatingPointError(f"the scores of {c.name} hold NaN or infinity")
            found[row.name] = c.weight.oriented(score)
        return best(sparsifier.plan, found, lambda size, final: kept_at(self, progress, size, final))


def precise(tensor: Tensor) -> torch.dtype:
    """float32, or float64 for a tensor that is."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
