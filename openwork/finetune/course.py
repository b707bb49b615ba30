"""The optimizer's way through the steps: AdamW, a rate that warms up and falls to nothing, precise copies of coarse numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from openwork.progress import phase


def rate(step: int, steps: int, warmup: float = 0.1) -> float:
    """Share of the learning rate at a step: rises over the first ``warmup`` of the steps, then falls in a line to nothing."""
    warm = max(1, round(warmup * steps))
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


def train(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    accumulate: int = 1,
    what: str = "training",
) -> list[float]:
    """Minimise a loss with AdamW, without weight decay.

    Parameters of 16 bits are trained as copies of 32, which are rounded into them after each step: steps too small for 16 bits
    add up.

    Args:
        parameters: what to change, in place.
        loss: the loss of example number ``i``, which counts ``steps * accumulate`` of them.
        steps: of the optimizer.
        learning_rate: the highest, see :func:`rate`.
        accumulate: examples a step.
        what: is done, for the progress bar.

    Returns:
        The mean loss of each step.

    Raises:
        ValueError: the loss is NaN or infinite; what was trained is in an undefined state then.
    """
    precise = [
        p if p.dtype in (torch.float32, torch.float64) else nn.Parameter(p.detach().float())
        for p in parameters
    ]
    optimizer = torch.optim.AdamW(precise, lr=learning_rate, weight_decay=0.0)
    losses = []
    with phase(what, steps) as bar, torch.enable_grad():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate(step, steps)
            total = 0.0
            for i in range(accumulate):
                found = loss(step * accumulate + i) / accumulate
                found.backward()
                total += float(found.detach())
            if not math.isfinite(total):
                raise ValueError(f"{what}: the loss is {total} at step {step}; try a smaller learning rate")
            for p, copy in zip(parameters, precise, strict=True):
                if copy is not p:
                    copy.grad = None if p.grad is None else p.grad.float()
            optimizer.step()
            for p, copy in zip(parameters, precise, strict=True):
                if copy is not p:
                    p.data.copy_(copy.data)
                p.grad = None
            losses.append(total)
            bar.advance()
    return losses
