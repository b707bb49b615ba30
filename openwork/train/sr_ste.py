"""SR-STE: learn N:M masks from scratch, pulling pruned weights to zero so that the masks settle."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from openwork.method import Method, method
from openwork.patterns import Pattern
from openwork.sparsifier import Sparsifier
from openwork.train.dnw import DNW


@method(
    paper="Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, ICLR 2021, arXiv 2102.04010",
    kind="train",
)
@dataclass(frozen=True, kw_only=True)
class SRSTE(DNW):
    """Sparse-refined straight-through estimator: train N:M sparse networks from scratch.

    With dense weights ``theta`` and ``M`` the N largest ``|theta|`` of every M consecutive inputs, chosen anew after every step::

        forward   w = M * theta
        backward  theta <- theta - lr * (dL/dw + decay * (1 - M) * theta)

    The plain straight-through estimator (``decay=0``, which is :class:`DNW` in this pattern) lets pruned weights drift on
    gradients that were computed without them, and masks flicker. The added term pulls them to zero.

    Args:
        pattern: 2:4 by default; inputs of a convolution are grouped along its channels, separately for each kernel position.
            Layers whose inputs do not divide stay dense, as the plan shows.
        decay: 2e-4 as in the paper. It is part of the gradient, so the optimizer scales it like one: with Adam, which
            divides a gradient by its size, it acts more strongly than with SGD.

    ``sparsity`` plays no part where the pattern says how many are kept.
    """

    pattern: str | Pattern = "2:4"
    decay: float = 2e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay < 0:
            raise ValueError(f"decay is at least 0; got {self.decay}")

    def limits(self) -> Iterable[tuple[Method, Method]]:
        plain = dataclasses.replace(self, decay=0.0)
        yield plain, plain.reduced_to(DNW)

    def before_step(self, sparsifier: Sparsifier, step: int) -> None:
        for _, c in sparsifier.latents():
            gradient = c.weight.parameter.grad
            if gradient is not None and self.decay:
                gradient += torch.where(c.inactive, self.decay * c.latent, 0)
