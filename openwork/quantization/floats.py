"""Float grids: levels that lie closer together near zero, as the weights of a bell-shaped distribution do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from openwork.quantization.grids import (
    SCALES,
    Grid,
    Loss,
    Placement,
    best,
    check_finite,
    check_scales,
    squared,
)
from openwork.quantization.integers import stored

BIASES = 101
"""How many biases a search tries, besides the one that just holds the largest value."""

REACH = 1.5
"""A search by addition goes so far to either side of that bias: the largest value is between 0.35 and 2.8 times the top."""


@dataclass(frozen=True)
class FloatGrid(Grid):
    """Signed floats of ``exponent`` and ``mantissa`` bits, without infinities and NaN, and a real-valued exponent bias ``b``::

        top = (2 - 2^-M) 2^(2^E - 1 - b)         p = max(1, floor(log2 |x| + b))
        step = 2^(p - M - b)                     level = step * round(x / step)

    ``FloatGrid(2, 1)`` at bias 1 is {0, 0.5, 1, 1.5, 2, 3, 4, 6} and the negatives; ``FloatGrid(1, 2)`` is uniform;
    ``FloatGrid(3, 0)`` has powers of two. A bias is a scale: ``scale = 2^(b1 - b)`` with the usual bias ``b1 = 2^(E-1) - 1``,
    at which the scale is 1.

    The code is that of the float: sign, exponent, mantissa, from the highest bit. Negative zero is never written.

    Args:
        exponent: bits, at least 1.
        mantissa: bits.
        bias: how to find it: "max" takes the one that just holds the largest value; "additive" tries 101 more within 1.5 of it;
            "multiplicative" tries ``(0.01 + 0.0119 i) * b0``, as the paper does, which is of no use where ``b0`` is near zero
            or below.
        scales: what the scale is stored as.
    """

    exponent: int = 2
    mantissa: int = 1
    bias: Literal["max", "additive", "multiplicative"] = "additive"
    scales: str = "float32"

    def __post_init__(self) -> None:
        if self.exponent < 1 or self.mantissa < 0 or not 3 <= self.bits <= 8:
            raise ValueError(
                "a float grid has an exponent of at least 1 bit and 3 to 8 bits in all, sign included; "
                f"got exponent={self.exponent}, mantissa={self.mantissa}"
            )
        if self.bias not in ("max", "additive", "multiplicative"):
            raise ValueError(f"bias is 'max', 'additive' or 'multiplicative'; got {self.bias!r}")
        check_scales(self.scales)

    @property
    def bits(self) -> int:  # type: ignore[override]
        return 1 + self.exponent + self.mantissa

    @property
    def name(self) -> str:
        """Such as E2M1."""
        return f"E{self.exponent}M{self.mantissa}"

    @property
    def holds_zero(self) -> bool:
        return True

    @property
    def placement_bits(self) -> int:
        return SCALES[self.scales].itemsize * 8

    @property
    def usual_bias(self) -> int:
        """The bias at scale 1."""
        return int(2 ** (self.exponent - 1) - 1)

    @property
    def top(self) -> float:
        """The largest level at scale 1."""
        return float((2 - 2.0**-self.mantissa) * 2.0 ** (2**self.exponent - 1 - self.usual_bias))

    def levels(self) -> Tensor:
        """Values by code at scale 1, float64 ``[2 ** bits]``."""
        return _levels(self.exponent, self.mantissa).clone()

    def scale_of(self, bias: Tensor) -> Tensor:
        """The scale that a bias is."""
        return torch.exp2(self.usual_bias - bias)

    def bias_of(self, scale: Tensor) -> Tensor:
        """The bias that a scale is."""
        return self.usual_bias - scale.log2()

    def at(self, scale: Tensor) -> Placement:
        """The placement at a scale, as stored."""
        scale = stored(scale, self.scales)
        return Placement(scale, torch.zeros_like(scale))

    def holding(self, largest: Tensor) -> Tensor:
        """The scale at which the top is ``largest``; 1 where that is zero."""
        return torch.where(largest > 0, largest / self.top, 1.0)

    def fit(self, values: Tensor, loss: Loss | None = None) -> Placement:
        check_finite(values)
        scale = self.holding(values.abs().amax(-1))
        if self.bias == "max":
            return self.at(scale)
        return best(self, values, self.candidates(scale), loss or squared)[0]

    def candidates(self, scale: Tensor) -> Iterator[Placement]:
        """The placements that a search tries around the one that just holds the largest value, that one first."""
        yield self.at(scale)
        b0 = self.bias_of(scale)
        for i in range(BIASES):
            if self.bias == "multiplicative":
                bias = (0.01 + i * (1.2 - 0.01) / (BIASES - 1)) * b0
            else:
                bias = b0 + REACH * (2 * i / (BIASES - 1) - 1)
            yield self.at(self.scale_of(bias))

    def encode(self, values: Tensor, at: Placement) -> Tensor:
        level = self._level(values, at.scale)
        magnitudes = self.levels()[: 1 << (self.bits - 1)].to(level)  # ascending
        code = torch.searchsorted(magnitudes, level)
        negative = (values < 0) & (code > 0)
        return (code + negative * (1 << (self.bits - 1))).to(torch.uint8)

    def round(self, values: Tensor, at: Placement) -> Tensor:
        """As decoding the codes, without looking them up."""
        level = self._level(values, at.scale)
        return torch.where(level > 0, torch.copysign(level, values), 0).mul_(at.scale).to(values.dtype)

    def _level(self, values: Tensor, scale: Tensor) -> Tensor:
        """The magnitudes of the nearest levels, at scale 1."""
        size = (values.abs() / scale).clamp_(max=self.top)
        exponent = (torch.frexp(size).exponent - 1).clamp_(min=1 - self.usual_bias)  # floor(log2), exactly
        step = torch.ldexp(torch.ones_like(size), exponent - self.mantissa)
        return size.div_(step).round_().mul_(step)

    def decode(self, codes: Tensor, at: Placement) -> Tensor:
        levels: Tensor = self.levels().to(at.scale)[codes.long()]
        return levels * at.scale


def formats(bits: int, *, least_mantissa: int = 0) -> list[tuple[int, int]]:
    """(exponent, mantissa) of every float of so many bits: ``M = 0 .. bits - 2``, ``E = bits - 1 - M``.

    Exponents wider than 5 bits are left out: their largest values exceed float32's range for any scale of use.
    """
    return [(bits - 1 - m, m) for m in range(least_mantissa, bits - 1) if 1 <= bits - 1 - m <= 5]


@lru_cache(maxsize=32)
def _levels(exponent: int, mantissa: int) -> Tensor:
    field = torch.arange(2 ** (exponent + mantissa), dtype=torch.float64)
    power = (field / 2**mantissa).floor()
    part = field / 2**mantissa - power
    bias = 2 ** (exponent - 1) - 1
    # An exponent field of zero holds the subnormal numbers: no hidden one, and the power of field 1.
    size = torch.where(power > 0, (1 + part) * torch.exp2(power - bias), part * 2.0 ** (1 - bias))
    both: Tensor = torch.cat([size, -size])
    return both
