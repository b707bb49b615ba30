"""The verb: freeze a model but for parts of its weights, and train those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from openwork import resuming
from openwork.method import require_kind
from openwork.plan import plan
from openwork.sparsifier.optimizers import around_steps
from openwork.thawing.contract import Thawing
from openwork.thawing.weight import ThawedWeight
from openwork.weights import unwrapped


class Thawed:
    """A model of which parts are trained. Made by :func:`thaw_`.

    Attributes:
        method: that chose them.
        weights: name -> the weight with its part.
        step_count: optimizer steps seen.
        generator: the method's own random state.
        state: numbers that the method keeps from step to step.
    """

    def __init__(self, method: Thawing, model: nn.Module, weights: Mapping[str, ThawedWeight]) -> None:
        self.method, self.weights = method, dict(weights)
        self.step_count = 0
        self.generator = method.generator("steps")
        self.state: dict[str, Tensor] = {}
        self._size = sum(p.numel() for p in model.parameters())
        self._frozen = [p for p in model.parameters() if p.requires_grad]
        self._handles: list[RemovableHandle] = []
        self._optimizer: Optimizer | None = None
        for p in self._frozen:
            p.requires_grad_(False)
        for weight in self.weights.values():
            weight.attach()

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained: one parameter a weight, of the size of its part."""
        for weight in self.weights.values():
            yield weight.values

    @property
    def trainable(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters())

    @property
    def fraction(self) -> float:
        """The same as a fraction of the model's parameters."""
        return self.trainable / self._size

    def attach(self, optimizer: Optimizer) -> None:
        """Let the method work around the steps of ``optimizer``, which trains :meth:`parameters`. Once."""
        if self._optimizer is not None:
            raise ValueError("an optimizer is attached already")
        self._optimizer = optimizer
        self._handles = around_steps(optimizer, self._before_step, self._after_step)

    def delta(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What has been learned: parameter name -> flat positions that may have changed, and by how much (float64)."""
        found = {}
        for name, weight in self.weights.items():
            whole = weight.parameter.detach()
            places = torch.arange(whole.numel(), device=whole.device).view(whole.shape)
            at = weight.started.take(places).flatten()
            found[name] = at, (weight.settled().double() - weight.before.double()).flatten()
        return found

    def merge_(self) -> None:
        """Leave what was trained in the weights, and the model as it was otherwise: plain parameters, nothing frozen."""
        for weight in self.weights.values():
            if not bool(weight.values.detach().isfinite().all()):
                raise ValueError(
                    f"the trained part of {weight.name} holds NaN or infinity: nothing was merged"
                )
        self._let_go()

    def remove_(self) -> None:
        """Undo what was trained: the weights are what they were before :func:`thaw_`, bit for bit."""
        self._let_go()
        with torch.no_grad():
            for weight in self.weights.values():
                weight.started.put_(weight.parameter, weight.before)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the same bits, beside the optimizer's own state; tensors and plain values only."""
        return {
            **resuming.saved(self.method, self.step_count, self.generator, self.state),
            "parts": {
                name: {**w.part.record(), "values": w.values.detach().cpu(), "weight": w.settled().cpu()}
                for name, w in self.weights.items()
            },
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state: thaw the same base model with the same method, load this, then the optimizer's state.

        Raises:
            ValueError: it is the state of another method or of other weights; nothing has changed then.
        """
        resuming.require_well_formed(saved, "a thawed part")
        resuming.require_same_method(saved, self.method, "Thaw with")
        if different := saved["parts"].keys() ^ self.weights.keys():
            raise ValueError(f"only one of model and saved state has {min(different)}")
        for name, part in saved["parts"].items():
            self.weights[name].check(part)
        for name, part in saved["parts"].items():
            self.weights[name].restore_(part)
        self.step_count = saved["step"]
        self.generator.set_state(saved["generator"])
        self.state = {name: tensor.clone() for name, tensor in saved["state"].items()}

    def narrow_(self, name: str, chosen: Tensor) -> None:
        """Go on with a part of the single places that are trained of a weight; the optimizer starts afresh with those.

        Args:
            name: of the weight.
            chosen: boolean over its trained values.
        """
        weight = self.weights[name]
        weight.narrow_(chosen)
        if self._optimizer is not None:
            self._optimizer.state.pop(weight.values, None)

    def _let_go(self) -> None:
        for handle in self._handles:
            handle.remove()
        for weight in reversed(self.weights.values()):
            weight.detach()
        for p in self._frozen:
            p.requires_grad_(True)
        self._frozen.clear()

    def _before_step(self) -> None:
        with torch.no_grad():
            self.method.before_step(self, self.step_count + 1)

    def _after_step(self) -> None:
        self.step_count += 1
        for weight in self.weights.values():
            weight.stale()
        with torch.no_grad():
            self.method.after_step(self, self.step_count)


def thaw_(model: nn.Module, method: Thawing) -> Thawed:
    """Freeze ``model`` but for parts of its weights, in place.

    Until they are merged, those weights are parametrized (:mod:`torch.nn.utils.parametrize`): the model computes with the same
    dense tensors as before, and only the parts require gradients. Zeros of a sparse model are not trained, unless the method
    says so.

    Args:
        model: any module, on the device where it is to be trained.
        method: which parts, such as ``ow.S2FT()`` or ``ow.SaRA(fraction=0.1)``.

    Returns:
        What is trained: give :meth:`Thawed.parameters` to an optimizer, and that to :meth:`Thawed.attach`.

    Raises:
        TypeError: the method does not thaw.
        ValueError: there is nothing to train, a glob matches no weight, or several modules share one that would be trained. The
            model has not changed then.
    """
    require_kind(method, Thawing, "does not train parts of a frozen model: use ow.attach or ow.adapt_")
    model = unwrapped(model)
    weights = [row.weight for row in plan(model, method).sparse]
    parts = method.parts(model, weights)
    known = {w.name: w for w in weights}
    for name in parts:
        holders = [n for n, p in model.named_parameters(remove_duplicate=False) if p is known[name].parameter]
        if len(holders) > 1:
            raise ValueError(
                f"{' and '.join(holders)} are one weight, and its parts can be trained where it has one place only: exclude it"
            )
    return Thawed(
        method,
        model,
        {name: ThawedWeight(known[name], part, not method.fills_zeros) for name, part in parts.items()},
    )
