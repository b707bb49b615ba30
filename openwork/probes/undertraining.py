"""Has a sparse network been trained for long enough? Two signs that it has not, both on the training data.

Sparse networks trained by the schedule of a dense one end *under-trained*: their loss on the data they were trained on is higher,
and they are less sure of their answers. As long as that is so, a longer run, with weaker augmentation and label smoothing, is
worth more than another method (Kuznedelev et al., Accurate Neural Network Pruning Requires Rethinking Sparse Optimization, TMLR
2024, arXiv 2308.02060).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Undertraining:
    """A sparse network beside the dense one it should match. Made by :func:`undertraining`.

    Attributes:
        loss, dense_loss: mean cross entropy in nats, on training data.
        entropy, dense_entropy: mean entropy of the answers in nats: 0 where a network is sure, ``log(classes)`` where it has no
            idea.
    """

    loss: float
    dense_loss: float
    entropy: float
    dense_entropy: float

    @property
    def gap(self) -> float:
        """By how much the sparse loss is above the dense one: train longer while it is."""
        return self.loss - self.dense_loss

    def __str__(self) -> str:
        verdict = "train longer" if self.gap > 0 else "as well trained as the dense network"
        return (
            f"training loss {self.loss:.4f} (dense {self.dense_loss:.4f}), entropy {self.entropy:.4f} "
            f"(dense {self.dense_entropy:.4f}): {verdict}"
        )


def undertraining(
    sparse: nn.Module, dense: nn.Module, data: Iterable[tuple[Tensor, Tensor]]
) -> Undertraining:
    """Loss and entropy of two networks on batches of what they were trained on, without augmentation.

    Args:
        sparse, dense: from inputs to logits ``[..., classes]``; judged in evaluation mode, and not changed.
        data: pairs of inputs and targets ``[...]``, at least one.

    Raises:
        ValueError: there is no data.
    """
    batches = list(data)
    if not batches:
        raise ValueError(
            "two networks are compared on data, and there is none: give some batches of the training data"
        )
    loss, entropy = _judged(sparse, batches)
    dense_loss, dense_entropy = _judged(dense, batches)
    return Undertraining(loss, dense_loss, entropy, dense_entropy)


@torch.no_grad()
def _judged(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        loss, entropy, count = 0.0, 0.0, 0
        for inputs, targets in batches:
            logs = model(inputs).flatten(0, -2).double().log_softmax(-1)
            loss += float(nn.functional.nll_loss(logs, targets.flatten(), reduction="sum"))
            entropy -= float((logs.exp() * logs).nan_to_num(0.0).sum())
            count += targets.numel()
    finally:
        for module, mode in modes:
            module.training = mode
    return loss / count, entropy / count
