"""Adam, for numbers that a method trains itself, beside those that the user's optimizer trains.

D. P. Kingma, J. Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, arXiv 1412.6980.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8


@torch.no_grad()
def descend(state: MutableMapping[str, Tensor], name: str, gradient: Tensor, step: int, rate: float) -> None:
    """Take one step of Adam for the tensor ``state[name]``; its two moments are kept beside it, so that all is saved together.

    Args:
        state: holds the tensor; its entries are replaced, never changed in place.
        name: of the tensor.
        gradient: of its shape; an overflow counts as nothing, lest it stay in the moments for ever.
        step: how many steps there will have been with this one.
        rate: the learning rate.
    """
    number = state[name]
    gradient = gradient.to(number.dtype).nan_to_num(0, 0, 0)
    mean = state.get(f"mean of {name}", torch.zeros_like(number))
    square = state.get(f"square of {name}", torch.zeros_like(number))
    mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
    square = BETAS[1] * square + (1 - BETAS[1]) * gradient.square()
    unbiased = (square / (1 - BETAS[1] ** step)).sqrt() + EPSILON
    state[f"mean of {name}"], state[f"square of {name}"] = mean, square
    state[name] = number - rate / (1 - BETAS[0] ** step) * mean / unbiased
