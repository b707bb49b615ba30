"""SaRA: fine-tune the smallest weights, which do the least, as free capacity for what is new."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openwork.allocation import allocation
from openwork.factorization import nuclear_subgradient
from openwork.method import check_fraction, method
from openwork.patterns import Unstructured
from openwork.thawing import Part, Scatter, Thawed, Thawing
from openwork.weights import Weight


@method(
    paper="Hu et al., SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation, ICLR 2025, "
    "arXiv 2409.06633",
    kind="finetune",
)
@dataclass(frozen=True, kw_only=True)
class SaRA(Thawing):
    """Train only the weights that are nearest to zero, in place; all others stay as they are, bit for bit.

    ::

        M     = |W| < theta                  trained are the numbers W[M], and nothing else
        loss += nuclear * ||W * M||_*        of one matrix a step, drawn at random
        once, M <- M and |W| < theta now     what has grown is learned and rests; the still small ones go on, afresh

    Nothing is added to the model. What has been learned is so many numbers (:meth:`Thawed.delta`).

    Args:
        fraction: of the weights that is trained, the smallest of all matrices together, exactly so many; 0.1.
        threshold: ``theta``, instead of a fraction; the paper takes 5e-4 to 2e-3 for diffusion models.
        nuclear: 5e-4, as in the paper; 0 leaves the term out. Only matrices of more than ``least`` rows and columns have it.
        least: 64.
        rearm: when ``M`` is made smaller, as a part of the run; 0.5, as in the paper; 1 for never.
        steps: optimizer steps of the whole run; needed for ``rearm`` below 1.
        regrow: also train weights that are zero, as after pruning; otherwise they stay zero.

    Only weight matrices are covered: decay would shrink norms and biases that fall below the threshold. The paper's learning rate
    is ``1e-3 * exp(-350 * theta)``, weight decay 1e-2.

    Differences from the authors' code: that starts from the absolute values of what it trains, which flips signs; here the model
    computes the same at first.
    """

    fraction: float = 0.1
    threshold: float | None = None
    nuclear: float = 5e-4
    least: int = 64
    rearm: float = 0.5
    steps: int | None = None
    regrow: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("fraction", self.fraction)
        check_fraction("rearm", self.rearm)
        if self.nuclear < 0 or (self.threshold is not None and self.threshold <= 0):
            raise ValueError(
                f"nuclear is at least 0 and threshold above; got {self.nuclear} and {self.threshold}"
            )

    @property
    def fills_zeros(self) -> bool:
        return self.regrow

    def parts(self, model: nn.Module, weights: Sequence[Weight]) -> Mapping[str, Part]:
        if self.rearm < 1.0 and (self.steps is None or self.steps < 1):
            raise ValueError(
                "sara makes its choice again within the run and does not know its length: give steps=, or rearm=1"
            )
        sizes = [w.parameter.detach().abs() for w in weights]
        eligible = [torch.ones_like(s, dtype=torch.bool) if self.regrow else s != 0 for s in sizes]
        if self.threshold is not None:
            masks = [(s < self.threshold) & e for s, e in zip(sizes, eligible, strict=True)]
        else:
            scores = [(-s).masked_fill(~e, -math.inf) for s, e in zip(sizes, eligible, strict=True)]
            total = round(self.fraction * sum(int(e.sum()) for e in eligible))
            counts = allocation("global").counts([tuple(s.shape) for s in scores], total, scores)
            masks = [Unstructured().choose(s, c) for s, c in zip(scores, counts, strict=True)]
        found: dict[str, Part] = {
            w.name: Scatter(mask.flatten().nonzero().flatten())
            for w, mask in zip(weights, masks, strict=True)
            if bool(mask.any())
        }
        if not found:
            raise ValueError(
                "there is nothing to train: no weight is that small; raise fraction or threshold"
            )
        return found

    def before_step(self, thawed: Thawed, step: int) -> None:
        wide = [w for w in thawed.weights.values() if w.values.numel() and _narrow(w.weight[0]) > self.least]
        if not self.nuclear or not wide:
            return
        drawn = int(torch.randint(len(wide), (1,), generator=thawed.generator))
        chosen = wide[drawn]
        if chosen.values.grad is not None:
            chosen.values.grad.add_(self.nuclear * self._pull(chosen.weight[0], chosen.part, chosen.values))

    def _pull(self, weight: Weight, part: Part, values: Tensor) -> Tensor:
        """The subgradient of the nuclear norm of what is trained of a matrix, at its places."""
        alone = values.new_zeros(weight.parameter.shape)
        part.put_(alone, values.detach())
        subgradient = nuclear_subgradient(weight.oriented(alone).flatten(1)).view(weight.shape)
        return part.take(weight.restored(subgradient))

    def after_step(self, thawed: Thawed, step: int) -> None:
        if self.rearm == 1.0 or self.steps is None or step != max(1, math.floor(self.rearm * self.steps)):
            return
        theta = self._theta(thawed)
        for name, weight in thawed.weights.items():
            thawed.narrow_(name, weight.values.detach().abs() < theta)

    def _theta(self, thawed: Thawed) -> float:
        """The threshold; for a fraction the size of the largest weight that was chosen."""
        if self.threshold is not None:
            return self.threshold
        return max(float(w.before.abs().max()) for w in thawed.weights.values())


def _narrow(weight: Weight) -> int:
    """The shorter side of a weight seen as a matrix; 0 for a layer that holds only its kept connections."""
    return 0 if weight.stored else min(weight.shape[0], math.prod(weight.shape[1:]))
