"""The networks of a contest: perceptrons of one shape, and dense ones of the size that sparse ones have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise

from torch import nn

from openwork.tasks.mlp import mlp


@dataclass(frozen=True)
class Perceptrons:
    """Seed -> a new perceptron of these ``sizes``, from inputs to outputs."""

    sizes: tuple[int, ...]

    def __call__(self, seed: int) -> nn.Module:
        return mlp(self.sizes, seed=seed)

    def __str__(self) -> str:
        return "mlp " + "-".join(map(str, self.sizes))

    @property
    def connections(self) -> int:
        """Weights between units; biases not counted."""
        return sum(inputs * outputs for inputs, outputs in pairwise(self.sizes))

    def small(self, connections: int) -> Perceptrons:
        """The widest of the same depth that has no more ``connections``; all hidden layers shrink by the same factor.

        Raises:
            ValueError: not even one of single hidden units is small enough.
        """
        fitting = None
        for candidate in self._narrower():
            if candidate.connections > connections:
                break
            fitting = candidate
        if fitting is None:
            raise ValueError(f"no {self} narrows to {connections} connections: keep more of them")
        return fitting

    def _narrower(self) -> Iterator[Perceptrons]:
        hidden = self.sizes[1:-1]
        for width in count(1):
            scaled = (max(1, round(h * width / max(hidden))) for h in hidden)
            yield Perceptrons((self.sizes[0], *scaled, self.sizes[-1]))
