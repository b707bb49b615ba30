"""TRP: train a network towards low rank, so that decomposing it afterwards costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from openwork.factorization import (
    FORMS,
    Form,
    as_matrix,
    as_weight,
    energy_rank,
    nuclear_subgradient,
    spectrum,
)
from openwork.method import method
from openwork.plan import plan
from openwork.regularizer import Regularization, Regularizer
from openwork.schedules import Linear, Scalar, value_at
from openwork.weights import Weight


@method(
    paper="Xu et al., TRP: Trained Rank Pruning for Efficient Deep Neural Networks, IJCAI 2020, arXiv 2004.14566",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class TRP(Regularization):
    """Trained rank pruning: every few steps each weight loses its smallest singular values, and the loss pulls at the others.

    Every ``period`` steps, before the optimizer's step, for each weight seen as a matrix ``W = U S V^T`` (or as one for each
    filter, of one rank)::

        k    the smallest rank with energy(t) of the sum of squares
        W    <- U_k S_k V_k^T
        grad <- grad + nuclear * U_k V_k^T          the subgradient of ||W||_*

    The weights stay dense tensors. At the last step they are cut once more, so that :class:`openwork.Decompose` finds them of low
    rank, in the same form.

    Args:
        period: 20, as in the paper; the released runs also take 1.
        energy: 0.98 of the sum of squares is kept, after a ramp from 1 over the first tenth of the run: cutting hard in the
            beginning keeps a network from learning.
        nuclear: 3e-4.
        form: how a convolution is seen, ``channel``, ``spatial`` or ``decoupled``, see :class:`openwork.Decompose`.
        exclude: usually the first layer.
        pointwise: also cut ``1 x 1`` and strided convolutions, which the authors leave alone.

    Momentum goes on pushing along directions that were cut; the next cut removes what that brings back.
    """

    period: int = 20
    energy: Scalar = field(default=Linear(start=1.0, stop=0.98, until=0.1))
    nuclear: float = 3e-4
    form: Form = "channel"
    pointwise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.period < 1 or self.nuclear < 0 or self.form not in FORMS:
            raise ValueError(
                f"period is at least 1, nuclear at least 0 and form one of {', '.join(FORMS)}; got {self.period}, {self.nuclear} "
                f"and {self.form!r}"
            )

    def attached(self, regularizer: Regularizer, state: Mapping[str, Tensor]) -> None:
        value_at(self.energy, 1, self.run_length)
        found = self.weights(regularizer.model)
        for w in found:
            if w.stored or not bool(w.parameter.detach().all()):
                raise ValueError(
                    f"{w.name} has pruned weights, which a cut of its rank would fill: train for low rank before pruning, or "
                    "exclude it"
                )
        regularizer.state.update({f"rank {w.name}": torch.tensor(0) for w in found} | dict(state))

    def before_step(self, regularizer: Regularizer, step: int) -> None:
        if (step - 1) % self.period:
            return
        for w in self.weights(regularizer.model):
            cut = self._cut(regularizer, w, step)
            if self.nuclear and w.parameter.grad is not None:
                pull = as_weight(nuclear_subgradient(cut), w.shape, self.form)
                w.parameter.grad.add_(w.restored(self.nuclear * pull))

    def after_step(self, regularizer: Regularizer, step: int) -> None:
        if step == self.run_length:
            for w in self.weights(regularizer.model):
                self._cut(regularizer, w, step)

    def measures(self, regularizer: Regularizer) -> Mapping[str, float]:
        return {
            f"rank of {w.name}": float(regularizer.state[f"rank {w.name}"])
            for w in self.weights(regularizer.model)
        }

    def weights(self, model: nn.Module) -> list[Weight]:
        """The weights that are cut."""
        return [row.weight for row in plan(model, self).sparse if self._suits(row.weight)]

    def _suits(self, w: Weight) -> bool:
        if len(w.shape) == 2:
            return True
        module = w.module
        if not isinstance(module, nn.Conv2d) or module.groups != 1:
            return False
        return self.pointwise or (max(module.kernel_size) > 1 and max(module.stride) == 1)

    def _cut(self, regularizer: Regularizer, w: Weight, step: int) -> Tensor:
        """Cut the rank of one weight; returns it as a matrix, or several."""
        seen = w.oriented(w.parameter.detach())
        matrix = as_matrix(seen, self.form)
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        rank = energy_rank(spectrum(s), value_at(self.energy, step, self.run_length))
        regularizer.state[f"rank {w.name}"] = torch.tensor(rank)
        cut: Tensor = ((u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]).to(matrix.dtype)
        if rank < s.shape[-1]:
            w.parameter.copy_(w.restored(as_weight(cut, w.shape, self.form)))
        return cut
