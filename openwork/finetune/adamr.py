"""AdamR: decay towards the weights that fine-tuning began from, so that the delta stays small enough to be thinned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from openwork.method import method
from openwork.regularizer import Regularization, Regularizer


@method(paper="Deng et al., DARE the Extreme, ICLR 2025, arXiv 2410.09344 (DAREx-L2)", kind="finetune")
@dataclass(frozen=True, kw_only=True)
class AdamR(Regularization):
    """Weight decay for fine-tuning: not towards zero but towards ``W0``, decoupled, and steadied by Adam's second moments.

    Before every step of the optimizer::

        W <- W - lr * decay / sqrt(v) * (W - W0)          v the mean of the second moments of all parameters

    A delta that is small can lose 99 % of its changes (:class:`openwork.DARE`). Zeros of ``W0`` are only pulled to zero; it is
    :class:`openwork.KeepZeros` that holds them there. It takes an optimizer that keeps second moments, such as AdamW, whose own
    decay is better 0 then.

    Args:
        decay: 1e-3; the paper searches 1e-4 to 1e-2. At 0 this is Adam.
        norm: ``l2``, or ``l1``, which pulls every weight alike by the sign of its change and leaves many unchanged.
    """

    decay: float = 1e-3
    norm: Literal["l2", "l1"] = "l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay < 0 or self.norm not in ("l2", "l1"):
            raise ValueError(f"decay is at least 0 and norm l2 or l1; got {self.decay} and {self.norm!r}")

    def attached(self, regularizer: Regularizer, state: Mapping[str, Tensor]) -> None:
        for name, p in regularizer.trained.items():
            saved = state.get(f"W0 {name}")
            regularizer.state[f"W0 {name}"] = (p.detach() if saved is None else saved.to(p.device)).clone()

    def before_step(self, regularizer: Regularizer, step: int) -> None:
        if self.decay == 0.0 or step == 1:  # there are no second moments yet, and no change
            return
        strength = self.decay / math.sqrt(self._mean_square(regularizer))
        for name, p in regularizer.trained.items():
            pull = p - regularizer.state[f"W0 {name}"]
            p.sub_(regularizer.learning_rate(p) * strength * (pull.sign() if self.norm == "l1" else pull))

    def _mean_square(self, regularizer: Regularizer) -> float:
        """The mean of Adam's second moments over all numbers, corrected for their start at zero."""
        total, count = 0.0, 0
        for group in regularizer.optimizer.param_groups:
            for p in group["params"]:
                held = regularizer.optimizer.state.get(p, {})
                if "exp_avg_sq" not in held:
                    continue
                correction = 1.0 - group["betas"][1] ** float(held["step"])
                total += float(held["exp_avg_sq"].sum(dtype=torch.float64)) / correction
                count += p.numel()
        if not count:
            raise ValueError(
                f"adamr needs second moments, and {type(regularizer.optimizer).__name__} keeps none: use Adam or AdamW"
            )
        return max(total / count, torch.finfo(torch.float32).tiny)
