"""Keeps the topology of a model before and after each step of its optimizers, and knows what must be saved to go on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from openwork import processes
from openwork.connections import Connections, LatentConnections
from openwork.plan import Plan, Row, collapse
from openwork.resuming import saved
from openwork.sparsifier.contract import Training
from openwork.sparsifier.copies import follow
from openwork.sparsifier.occupation import vacate
from openwork.sparsifier.optimizers import around_steps, forget_flat_history
from openwork.sparsifier.resuming import require_fit


class SparsifierWarning(UserWarning):
    """Something a training run should know about: an update that was skipped, a parameter that no optimizer trains."""


class Sparsifier:
    """Keeps a model's topology while it trains. Made by :func:`attach`.

    Attributes:
        plan: what was asked for.
        method: the method at work.
        connections: name -> the kept connections of that parameter.
        step_count: optimizer steps seen.
        updates: how many topology updates took place.
        generator: the method's own random state.
        state: tensors a method keeps from update to update, by name; saved and restored with everything else.
        handles: of the hooks that :meth:`detach` removes.
    """

    def __init__(
        self,
        plan: Plan,
        method: Training,
        optimizers: Sequence[Optimizer],
        connections: Sequence[Connections],
    ) -> None:
        self.plan = plan
        self.method = method
        self.optimizers = tuple(optimizers)
        self.connections = {c.name: c for c in connections}
        self.step_count = 0
        self.updates = 0
        self.skipped = 0
        self.generator = method.generator("updates")
        self.state: dict[str, Tensor] = {}
        self._others = [
            0 for _ in self.optimizers[1:]
        ]  # steps that the optimizers after the first have taken
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []
        self._remembering = True
        self.handles: list[RemovableHandle] = []
        if self.optimizers:
            # The first optimizer is the clock: topology updates follow its steps.
            self.handles = around_steps(self.optimizers[0], self._before_step, self._after_step)
            for number, other in enumerate(self.optimizers[1:]):
                self.handles += around_steps(
                    other, partial(self._before_other, number), partial(self._after_other, number)
                )
        method.attached(self)
        self._require_agreement("when the sparsifier was attached")
        self._look_ahead()

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name -> boolean mask ``[out, in, *kernel]``, True = kept."""
        return {name: c.mask for name, c in self.connections.items()}

    @property
    def trained(self) -> dict[str, Connections]:
        """The connections that an update may move: all but those of parameters that are frozen now."""
        return {name: c for name, c in self.connections.items() if c.weight.parameter.requires_grad}

    def latents(self) -> list[tuple[Row, LatentConnections]]:
        """The rows of the plan, each with its connections, under a method whose pruned weights live on unseen."""
        found = []
        for row in self.plan.sparse:
            c = self.connections[row.name]
            assert isinstance(c, LatentConnections)
            found.append((row, c))
        return found

    @property
    def kept(self) -> int:
        """Active connections now."""
        return sum(c.kept for c in self.connections.values())

    @property
    def sparsity(self) -> float:
        """Fraction of zeros now, over the parameters the method works on."""
        return 1.0 - self.kept / sum(c.numel for c in self.connections.values())

    def summary(self) -> str:
        """A table of what was wanted and what is, parameter by parameter."""
        width = max(len(name) for name in self.connections)
        wanted = {row.name: row.kept for row in self.plan.sparse}
        lines = [
            f"{name.ljust(width)}  wanted {wanted[name]:>9}  kept {c.kept:>9} of {c.numel:>9}  "
            f"sparsity {1 - c.kept / c.numel:.4f}"
            for name, c in self.connections.items()
        ]
        lines += [collapse(name) for name, c in self.connections.items() if not c.kept]
        lines += [f"{what}: {value:.4f}" for what, value in self.method.measures(self).items()]
        return "\n".join(
            [
                f"{self.method.name} after step {self.step_count}: asked {self.plan.asked}, sparsity {self.sparsity:.6f}, "
                f"{self.updates} updates of the topology"
                + (f", {self.skipped} skipped" if self.skipped else ""),
                *lines,
            ]
        )

    def step(self) -> None:
        """For loops without an optimizer object: call once after the weights were changed by hand."""
        self._before_step()
        self._after_step()

    def follow(self, copy: nn.Module) -> None:
        """Let a copy of the model, such as a running average of its weights, take every change of the topology.

        Without that an average would mix the weights of connections that are not the same. What stays keeps the value it has in
        the copy, what is new starts with zero there, and what leaves is zero.

        Args:
            copy: a copy of the model, or an ``AveragedModel`` of it, in the same storage. Changed: its topology becomes that of
                the model.

        Raises:
            ValueError: the copy lacks a parameter, or has it in another shape or storage; nothing has changed then.
        """
        follow(self.connections, copy)

    def detach(self) -> None:
        """Let go of model and optimizers. The model keeps its zeros; nothing guards them any more."""
        for handle in self.handles:
            handle.remove()
        for c in self.connections.values():
            c.release()
        vacate(self.connections.values())

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on as if never interrupted, beside the model's and optimizers' own ``state_dict``.

        Holds tensors and plain values only, so ``torch.load(..., weights_only=True)`` reads it.
        """
        return {
            **saved(self.method, self.step_count, self.generator, self.state),
            "others": list(self._others),
            "updates": self.updates,
            "skipped": self.skipped,
            "positions": {name: c.positions for name, c in self.connections.items()},
            "remembered": {name: c.remembered() for name, c in self.connections.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. Load the model's state first, then the optimizers', then this.

        Raises:
            ValueError: the state belongs to another method, other options or other parameters, or a layer that holds only its
                kept connections has another topology; nothing has changed then.
        """
        require_fit(state, self.method, self.connections)
        for name, c in self.connections.items():
            positions = state["positions"][name].to(c.device)
            if not torch.equal(positions, c.positions):
                c.replace(positions)
            c.recall(state["remembered"][name])
        self.step_count, self.updates, self.skipped = state["step"], state["updates"], state["skipped"]
        self._others = [*state["others"], *[self.step_count for _ in self._others]][: len(self._others)]
        self.generator.set_state(state["generator"])
        self.state = {name: tensor.clone() for name, tensor in state["state"].items()}
        self._look_ahead()

    def _due(self, step: int) -> bool:
        return self.method.due(step)

    def _look_ahead(self) -> None:
        """Have the gradients of the next step remembered if an update will need them."""
        needs = self.method.growth_needs
        coming = "momentum" in needs or ("gradient" in needs and self._due(self.step_count + 1))
        if coming or self._remembering:
            for c in self.connections.values():
                c.observe(coming)
        self._remembering = coming

    def _before_step(self) -> None:
        with torch.no_grad():
            for c in self.connections.values():
                c.before_step()
            self.method.before_step(self, self.step_count + 1)
        for optimizer in self.optimizers[:1]:
            self._replace_step(optimizer, self.step_count + 1)

    def _after_step(self) -> None:
        self._show_gradients()
        self._restore_zeros()
        self.step_count += 1
        if self._due(self.step_count):
            self._update()
        self._look_ahead()

    def _before_other(self, number: int) -> None:
        self._replace_step(self.optimizers[1 + number], self._others[number] + 1)

    def _after_other(self, number: int) -> None:
        self._show_gradients()
        self._others[number] += 1
        self._restore_zeros()

    def _replace_step(self, optimizer: Optimizer, step: int) -> None:
        """Let a topology update take the place of an optimizer's ``step``: it skips parameters without a gradient."""
        if self.method.replaces_step and self._due(step):
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                if p.grad is not None:
                    self._hidden.append((p, p.grad))
                    p.grad = None

    def _show_gradients(self) -> None:
        for p, gradient in self._hidden:
            p.grad = gradient
        self._hidden.clear()

    def _restore_zeros(self) -> None:
        for c in self.connections.values():
            c.after_step()

    def _require_agreement(self, when: str) -> None:
        if processes.count() > 1:
            digests = {name: processes.digest(c.positions) for name, c in self.connections.items()}
            processes.require_agreement(digests, when, next(iter(self.connections.values())).device)

    def _update(self) -> None:
        before = {name for name, c in self.connections.items() if c.kept}
        self._remembering = True  # at least the positions, which take as much room as the weights
        try:
            for c in self.connections.values():
                values = c.values
                if values.numel() and not all(bool(bound.isfinite()) for bound in values.aminmax()):
                    raise FloatingPointError(f"the weights of {c.name} hold NaN or infinity")
            with torch.no_grad():
                self.method.update(self, self.step_count)
        except FloatingPointError as reason:
            self.skipped += 1
            self._warn(f"skipped: {reason}")
            return
        self.updates += 1
        for name in sorted(before):
            if not self.connections[name].kept:
                self._warn(f"collapsed a layer: {collapse(name)}")
        for optimizer in self.optimizers:
            forget_flat_history(optimizer)
        self._require_agreement(f"after the topology update at step {self.step_count}")

    def _warn(self, what: str) -> None:
        warnings.warn(f"topology update at step {self.step_count} {what}", SparsifierWarning, stacklevel=3)
