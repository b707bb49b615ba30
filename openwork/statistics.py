"""What calibration data says about the inputs of a layer: sums over tokens.

Nearly all methods that compress a trained network differ only in the statistic they need and in what they do with it. Every
statistic here is a sum (or a maximum) over tokens, so batches of any size may be added in any split, and two collections can
be merged. Methods choose their own scale: the sums come with the number of tokens, never as a running mean over sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Statistics:
    """Sums over the inputs ``X [tokens, in]`` of one layer, or of all layers that read the same tensor.

    Means and spreads are pooled with the formula for parallel variance (Chan et al., 1979), which counts the spread between
    batches as well; a weighted mean of the variances of the batches would lose it.

    Args:
        inputs: number of input features.
        gram: whether to sum ``X^T X`` too, the one statistic of size ``[in, in]``.
        samples: keep the first ``samples`` tokens themselves.
        dtype: of the sums of products: float32, or float64 where the model is float64. Vectors are always float64.
        device: of the sums.
    """

    def __init__(
        self,
        inputs: int,
        *,
        gram: bool = False,
        samples: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        zeros = torch.zeros(inputs, dtype=torch.float64, device=device)
        self.count = 0
        """Tokens seen."""
        self.mean, self.spread, self.absolute = zeros, zeros.clone(), zeros.clone()
        """Mean of every input, float64 ``[in]``; sum of its squared distances from the mean; sum of its magnitudes."""
        self.maximum = zeros.clone()
        """Largest magnitude of every input, float64 ``[in]``."""
        self._gram = torch.zeros(inputs, inputs, dtype=dtype, device=device) if gram else None
        self._wanted, self._samples = samples, torch.zeros(0, inputs, dtype=dtype, device=device)
        self._found: dict[Hashable, Any] = {}

    @classmethod
    def of_unit_inputs(cls, inputs: int, **options: Any) -> Statistics:
        """As if the inputs were uncorrelated, of mean zero and norm one: for a layer that nothing is known of, such as an expert
        that no token chose. ``options`` are those of the class.
        """
        unit = cls(inputs, **options)
        unit.count, unit.spread = 1, torch.ones_like(unit.spread)
        unit.absolute, unit.maximum = torch.ones_like(unit.spread), torch.ones_like(unit.spread)
        if unit._gram is not None:
            unit._gram.fill_diagonal_(1.0)
        return unit

    @property
    def inputs(self) -> int:
        """Number of input features."""
        return self.mean.numel()

    @property
    def gram(self) -> Tensor:
        """``H = X^T X``, ``[in, in]``.

        Raises:
            ValueError: it was not collected.
        """
        if self._gram is None:
            raise ValueError(
                "these statistics hold no X^T X: a method that reads it says so with needs = {'gram'}"
            )
        return self._gram

    @property
    def samples(self) -> Tensor:
        """The first tokens themselves, ``[tokens, in]``."""
        return self._samples

    @property
    def squares(self) -> Tensor:
        """``sum_t X[t, j]^2``, the diagonal of ``X^T X``, float64 ``[in]``."""
        return self.spread + self.count * self.mean.square()

    @property
    def variance(self) -> Tensor:
        """Variance of every input over all tokens (divided by their number), float64 ``[in]``."""
        return self.spread / max(self.count, 1)

    def add(self, x: Tensor) -> None:
        """Count tokens.

        Args:
            x: ``[tokens, in]``, any floating dtype; it does not change.
        """
        if not x.shape[0]:
            return
        self._found.clear()
        x = x.detach().to(self._samples.dtype)
        mean = x.mean(0)
        self._pool(x.shape[0], mean.double(), (x - mean).square_().sum(0).double())
        magnitudes = x.abs()
        self.absolute += magnitudes.sum(0)
        self.maximum = torch.maximum(self.maximum, magnitudes.amax(0).double())
        if self._gram is not None:
            self._gram.addmm_(x.T, x)
        if len(self._samples) < self._wanted:
            self._samples = torch.cat([self._samples, x[: self._wanted - len(self._samples)]])

    def merge(self, other: Statistics) -> None:
        """Add what ``other`` has seen; ``other`` does not change."""
        self._found.clear()
        self._pool(other.count, other.mean, other.spread)
        self.absolute += other.absolute
        self.maximum = torch.maximum(self.maximum, other.maximum)
        if self._gram is not None:
            self._gram += other.gram
        self._samples = torch.cat([self._samples, other.samples])[: self._wanted]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returns, made at the first call and kept until more tokens are added: layers that read the same tensor
        share one factorisation of ``X^T X`` that way.
        """
        if key not in self._found:
            self._found[key] = make()
        found: T = self._found[key]
        return found

    def _pool(self, count: int, mean: Tensor, spread: Tensor) -> None:
        if not count:
            return
        total = self.count + count
        apart = mean - self.mean
        self.spread = self.spread + spread + apart.square() * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total
