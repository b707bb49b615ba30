"""Pulls and pushes dense weights around the steps of any optimizer: towards low rank, towards where they came from.

regularizer = ow.regularize(model, optimizer, ow.TRP(steps=10_000))
...                                             # the user's loop, unchanged
regularizer.detach()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openwork import resuming
from openwork.method import Method, require_kind
from openwork.sparsifier import optimizers
from openwork.weights import unwrapped


@dataclass(frozen=True, kw_only=True)
class Regularization(Method):
    """A method that adds to gradients before a step, or moves weights around it; no connection is chosen.

    ``sparsity``, ``kept``, ``allocation``, ``pattern`` and ``overrides`` play no part.

    Args:
        steps: optimizer steps of the whole run, for methods that schedule something.
    """

    reads_zeros: ClassVar[bool] = True

    steps: int | None = None

    @property
    def run_length(self) -> int:
        """``steps``, or an error where it was not given."""
        if self.steps is None or self.steps < 1:
            raise ValueError(
                f"{self.name} works through a run and does not know its length: give steps=, the number of optimizer steps you "
                "will take"
            )
        return self.steps

    def attached(self, regularizer: Regularizer, state: Mapping[str, Tensor]) -> None:
        """Called once, before the first step.

        Args:
            regularizer: to keep what is remembered in its ``state``.
            state: what was remembered when it was saved; empty in a new run.

        Raises:
            ValueError: it cannot work on this model; nothing has changed then.
        """

    def before_step(self, regularizer: Regularizer, step: int) -> None:
        """Called before the optimizer takes ``step``, counted from 1."""

    def after_step(self, regularizer: Regularizer, step: int) -> None:
        """Called after it has taken ``step``."""

    def measures(self, regularizer: Regularizer) -> Mapping[str, float]:
        """What there is to see of the model now, by name."""
        return {}


class Regularizer:
    """A regularization at work. Made by :func:`regularize`.

    Attributes:
        model, optimizer, method: what works on what.
        step_count: optimizer steps seen.
        generator: the method's own random state.
        state: tensors that the method remembers, by name.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, method: Regularization) -> None:
        self.model, self.optimizer, self.method = model, optimizer, method
        self.step_count = 0
        self.generator = method.generator("steps")
        self.state: dict[str, Tensor] = {}
        self._handles = optimizers.around_steps(optimizer, self._before, self._after)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters of the model that the optimizer trains, by name."""
        own = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self.model.named_parameters() if id(p) in own}

    def learning_rate(self, parameter: nn.Parameter) -> float:
        """The present learning rate of a parameter."""
        groups = self.optimizer.param_groups
        return next(float(g["lr"]) for g in groups if any(p is parameter for p in g["params"]))

    def summary(self) -> str:
        """What there is to see of the model now, a line each."""
        lines = [f"{what}: {value:g}" for what, value in self.method.measures(self).items()]
        return "\n".join([f"{self.method.name} after step {self.step_count}", *lines])

    def detach(self) -> None:
        """Let go of the optimizer; the model stays as it is."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on with the same bits, beside the model's and the optimizer's own; tensors and plain values."""
        state = {name: tensor.detach().cpu() for name, tensor in self.state.items()}
        return resuming.saved(self.method, self.step_count, self.generator, state)

    def _before(self) -> None:
        with torch.no_grad():
            self.method.before_step(self, self.step_count + 1)

    def _after(self) -> None:
        self.step_count += 1
        with torch.no_grad():
            self.method.after_step(self, self.step_count)


def regularize(
    model: nn.Module, optimizer: Optimizer, method: Regularization, *, resume: Mapping[str, Any] | None = None
) -> Regularizer:
    """Let ``method`` work around the steps of ``optimizer``.

    Args:
        model: any module.
        optimizer: that trains it; wrapped ones are unwrapped.
        method: such as ``ow.TRP(steps=10_000)``.
        resume: the ``state_dict()`` of a regularizer, to go on from: give it first, then load the model's state and the
            optimizer's, whose shapes may have changed on the way.

    Raises:
        TypeError: the method is no regularization.
        ValueError: it cannot work on this model, or the saved state is of another run. Nothing has changed then.
    """
    require_kind(method, Regularization, "is no regularization: use ow.attach or ow.thaw_")
    if resume is not None:
        resuming.require_well_formed(resume, "a regularizer")
        resuming.require_same_method(resume, method, "Go on with")
    (first, *_) = optimizers.unwrapped(optimizer)
    regularizer = Regularizer(unwrapped(model), first, method)
    try:
        method.attached(regularizer, {} if resume is None else resume["state"])
    except BaseException:
        regularizer.detach()
        raise
    if resume is not None:
        regularizer.step_count = resume["step"]
        regularizer.generator.set_state(resume["generator"])
    return regularizer
