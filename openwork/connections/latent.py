"""Pruned weights that live on unseen: the optimizer trains the dense weights, the network computes with those kept.

Straight-through methods keep a dense *latent* weight ``theta`` and let the network see ``w = M * theta`` only; the gradient
with respect to ``w``, dense, is applied to ``theta``. Here the parameter of the model holds ``w`` at all times but one, the
moment of the optimizer's step, when it holds ``theta``. So the model stays an ordinary one with its plain keys: what is
evaluated, saved or compiled in between is the sparse network, and the gradient that autograd leaves is the straight-through one
by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from openwork.connections.masked import MaskedConnections
from openwork.connections.rewiring import Rewiring
from openwork.patterns import Pattern
from openwork.plan import Plan
from openwork.positions import where
from openwork.weights import Weight


class LatentConnections(MaskedConnections):
    """A parameter under a mask whose other weights are not zero but out of sight.

    Attributes:
        latent: the dense weights, of the parameter's shape.
        asleep: boolean of that shape: weights that have no gradient and never change, none by default. Their optimizer state
            is zero.
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
        self.latent = weight.parameter.detach().clone()
        self.asleep = torch.zeros_like(self.latent, dtype=torch.bool)
        self._faded = torch.zeros_like(self.asleep)
        self._strength = torch.ones((), dtype=torch.float64)
        self._threshold = torch.zeros((), dtype=torch.float64)
        self._gates: Tensor | None = None
        self._stepping = False
        super().__init__(
            weight, pattern, optimizers, positions=positions, momentum=momentum, activations=activations
        )

    @property
    def frozen(self) -> Tensor:
        return self.asleep

    def strongest_latent(self, kept: int, pattern: Pattern | None = None) -> Tensor:
        """Sorted positions of the legal mask of largest ``|theta|`` (of another pattern, if one is given).

        Raises:
            FloatingPointError: a latent weight is NaN or infinite.
        """
        if not bool(self.latent.isfinite().all()):
            raise FloatingPointError(f"the latent weights of {self.name} hold NaN or infinity")
        strength = self.weight.oriented(self.latent).abs()
        return where((pattern or self.pattern).choose(strength, kept))

    def sleep(self, awake: Tensor) -> None:
        """Let all weights but those at the sorted positions ``awake`` sleep from the next step on."""
        self.asleep.copy_(self.others(awake))

    def others(self, positions: Tensor) -> Tensor:
        """Boolean of the parameter's shape: all places but those at the sorted ``positions``."""
        found = torch.ones_like(self.inactive)
        self.weight.oriented(found)[torch.unravel_index(positions, self.weight.shape)] = False
        return found

    def fade(self, weak: Tensor, strength: float) -> None:
        """Show the weights at the places ``weak`` (boolean of the parameter's shape) at a part of their ``strength``; 1 ends
        it."""
        self._faded.copy_(weak)
        self._strength.fill_(strength)
        self._show()

    def fading(self) -> Tensor | None:
        """How strongly each weight is seen, of the parameter's shape; None where nothing fades."""
        if self._strength == 1.0:
            return None
        return torch.where(self._faded, float(self._strength), torch.ones_like(self.latent))

    def gate(self, strengths: Tensor) -> None:
        """Show what the pattern keeps together at a strength of its own: ``[rows, competitors]`` of its grid."""
        self._gates = strengths.to(self.latent, copy=True)
        self._show()

    def gates(self) -> Tensor:
        """The strength of every weight by :meth:`gate`, of the parameter's shape; ones where there are none."""
        if self._gates is None:
            return torch.ones_like(self.latent)
        whole = self._gates.unsqueeze(-1).expand(-1, -1, self.grid.atom)
        return self.weight.restored(self.grid.unview(whole, self.weight.shape))

    @property
    def threshold(self) -> float:
        """By how much the network sees every weight closer to zero than it is; 0 by default."""
        return float(self._threshold)

    def shrink(self, threshold: float) -> None:
        """Show the weights through a soft threshold: ``sign(theta) * max(|theta| - threshold, 0)``."""
        self._threshold.fill_(threshold)
        self._show()

    def write(self, positions: Tensor, values: Tensor) -> None:
        index = torch.unravel_index(positions, self.weight.shape)
        self.weight.oriented(self.latent)[index] = values.to(self.latent.dtype)
        self._show()

    def before_step(self) -> None:
        if self._stepping:
            raise RuntimeError(
                f"the optimizer evaluates the loss several times a step (as LBFGS does), and {self.name} has latent weights, "
                "which the network must not see: use an optimizer that evaluates it once"
            )
        super().before_step()
        with torch.no_grad():
            self.weight.parameter.copy_(self.latent)
        self._stepping = True

    def after_step(self) -> None:
        if self._stepping:
            moved = self.weight.parameter.detach()
            self.latent = torch.where(self.asleep, self.latent, moved)
            for holder, key in self._states():
                holder[key].masked_fill_(self.asleep, 0)
            self._stepping = False
        self._show()

    def remembered(self) -> dict[str, Tensor]:
        gates = {} if self._gates is None else {"gates": self._gates}
        return gates | {
            "latent": self.latent,
            "asleep": self.asleep,
            "faded": self._faded,
            "strength": self._strength,
            "threshold": self._threshold,
        }

    def recall(self, remembered: Mapping[str, Tensor]) -> None:
        for what, tensor in self.remembered().items():
            tensor.copy_(remembered[what])
        self._show()

    def _move(self, rewiring: Rewiring) -> None:
        self._set(rewiring.positions)
        self._show()

    def _show(self) -> None:
        """Let the network see what it may."""
        with torch.no_grad():
            strength = self.fading()
            seen = self.latent if strength is None else strength * self.latent
            if threshold := self.threshold:
                seen = torch.where(seen.abs() > threshold, seen - threshold * seen.sign(), 0)
            if self._gates is not None:
                seen = seen * self.gates()
            self.weight.parameter.copy_(seen)
            self.weight.parameter.masked_fill_(self.inactive, 0)


def require_latent(method: str, plan: Plan, optimizers: Sequence[Optimizer]) -> None:
    """Refuse a model or optimizer that latent weights cannot work with.

    Raises:
        ValueError: a layer holds only its kept connections, or the optimizer that moves the weights is not the one whose steps
            are followed.
    """
    if stored := [row.name for row in plan.sparse if row.weight.stored]:
        raise ValueError(
            f"{method} trains pruned weights out of sight, and {', '.join(stored)} hold only their kept connections: train "
            "masked (use to_dense_ first) and store when training is done"
        )
    if sharded := [row.name for row in plan.sparse if hasattr(row.weight.parameter, "device_mesh")]:
        raise ValueError(
            f"{method} trains pruned weights out of sight, whole in every process, and {', '.join(sharded)} are sharded over "
            "processes (DTensors, as fully_shard makes them): train with DistributedDataParallel"
        )
    if not optimizers:
        raise ValueError(
            f"{method} lets the optimizer see weights that the network does not, and there is no optimizer: give it to attach"
        )
    first = {id(p) for group in optimizers[0].param_groups for p in group["params"]}
    others = {id(p) for o in optimizers[1:] for group in o.param_groups for p in group["params"]}
    if strays := [row.name for row in plan.sparse if id(row.weight.parameter) in others - first]:
        raise ValueError(
            f"{method} follows the steps of the first optimizer, and another one trains {', '.join(strays)}: put all parameters "
            "that will be sparse into the first"
        )
