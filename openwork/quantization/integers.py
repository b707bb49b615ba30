"""Integer grids: equally spaced levels, 0 to ``2 ** bits - 1``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from openwork.quantization.grids import SCALES, Grid, Loss, Placement, best, check_finite, check_scales

CLIPS = 100
CLIPS_TRIED = 81
CLIP_POWER = 2.4
"""The search for a clipped range tries ``1 - i / 100``, i = 0 to 80, and makes ``sum |error| ** 2.4`` small, as GPTQ does."""

LARGEST_REAL_ZERO = 2.0**13
"""A group that hardly varies would put a real zero point beyond what sixteen bits hold."""


@dataclass(frozen=True)
class IntegerGrid(Grid):
    """Levels ``(code - zero) * scale``, ``code`` from 0 to ``2 ** bits - 1``.

    Asymmetric: the range is that of the group, zero included: ``scale = (max - min) / (2 ** bits - 1)`` and
    ``zero = round(-min / scale)``. Symmetric: ``scale = 2 max|w| / (2 ** bits - 1)`` and ``zero = 2 ** (bits - 1)``, the signed
    integers ``-2 ** (bits - 1)`` to ``2 ** (bits - 1) - 1``; the largest weight may then be half a step from its level.

    Args:
        bits: 2 to 8.
        symmetric: put zero in the middle.
        zero: "integer" rounds the zero point to a level, so that zeros of pruned weights stay exact; "real" does not, fits the
            range of the group alone, and is for weights without zeros.
        clip: search for a range that clips the largest weights and errs less in all.
        scales: what a scale is stored as; codes are found for the stored one. A real zero point is stored likewise.
    """

    bits: int = 4
    symmetric: bool = False
    zero: Literal["integer", "real"] = "integer"
    clip: bool = False
    scales: str = "float32"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"an integer grid has 2 to 8 bits; got {self.bits}")
        if self.zero not in ("integer", "real"):
            raise ValueError(f"the zero point is 'integer' or 'real'; got {self.zero!r}")
        if self.symmetric and self.zero == "real":
            raise ValueError("a symmetric grid has its zero in the middle, which is an integer")
        check_scales(self.scales)

    @property
    def holds_zero(self) -> bool:
        return self.zero == "integer"

    @property
    def top(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @property
    def placement_bits(self) -> int:
        scale = SCALES[self.scales].itemsize * 8
        if self.symmetric:
            return scale
        return scale + (self.bits if self.zero == "integer" else scale)

    def fit(self, values: Tensor, loss: Loss | None = None) -> Placement:
        check_finite(values)
        low, high = values.amin(-1), values.amax(-1)
        if self.zero == "integer":
            low, high = low.clamp(max=0), high.clamp(min=0)
        if not self.clip:
            return self._between(low, high)

        def clipped() -> Iterator[Placement]:
            for i in range(CLIPS_TRIED):
                part = 1 - i / CLIPS
                yield self._between(low * part, high * part)

        return best(self, values, clipped(), loss or _clipping_loss)[0]

    def _between(self, low: Tensor, high: Tensor) -> Placement:
        """The levels that span a range ``[...]``."""
        largest = torch.maximum(-low, high)
        width = 2 * largest if self.symmetric else high - low
        scale = width / self.top
        if self.zero == "real":
            scale = torch.maximum(scale, largest / LARGEST_REAL_ZERO)
        scale = stored(torch.where(scale > 0, scale, 1.0), self.scales)
        if self.symmetric:
            return Placement(scale, torch.full_like(scale, 2 ** (self.bits - 1)))
        zero = -low / scale
        if self.zero == "real":
            return Placement(scale, zero.to(SCALES[self.scales]).to(zero.dtype))
        return Placement(scale, zero.round().clamp(0, self.top))

    def encode(self, values: Tensor, at: Placement) -> Tensor:
        return (values / at.scale + at.zero).round_().clamp_(0, self.top).to(torch.uint8)

    def decode(self, codes: Tensor, at: Placement) -> Tensor:
        return (codes.to(at.scale.dtype) - at.zero) * at.scale


def stored(scale: Tensor, name: str) -> Tensor:
    """``scale`` as it comes back from storage: rounded, and not to zero."""
    dtype = SCALES[name]
    least = torch.finfo(dtype).smallest_normal
    return scale.clamp(min=least, max=torch.finfo(dtype).max).to(dtype).to(scale.dtype)


def _clipping_loss(error: Tensor) -> Tensor:
    return error.abs().pow(CLIP_POWER).sum(-1)
