"""Two levels: the scales and zeros of small groups, quantised in their turn.

With groups of 16 weights a scale and a zero of 16 bits each would cost 2 bits a weight. Quantised to 3 bits, over 16 rows that
share a second scale and zero, they cost ``2 * 3 / 16 + 4 * 16 / 256``, five eighths of a bit.

Paper: Dettmers et al., SpQR, ICLR 2024, arXiv 2306.03078.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openwork.quantization.grids import Placement
from openwork.quantization.grouped import Quantized, nearest
from openwork.quantization.integers import IntegerGrid


@dataclass(frozen=True)
class TwoLevel:
    """Scales and zeros ``[out, groups]``, held as codes.

    Attributes:
        scale, zero: codes ``[groups, out]``, of which so many consecutive rows of the weight share a placement.
        integer: zeros are rounded to a level after decoding, so that a zero weight stays exact.
    """

    scale: Quantized
    zero: Quantized
    integer: bool

    def placement(self) -> Placement:
        """What the codes say, ``[out, groups]``: this is what weights are quantised with."""
        zero = self.zero.dense().T
        return Placement(self.scale.dense().T, zero.round() if self.integer else zero)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and second placements."""
        return self.scale.nbytes + self.zero.nbytes


def joined(statistics: Sequence[TwoLevel]) -> TwoLevel:
    """Statistics of neighbouring groups, one after another."""

    def together(parts: Sequence[Quantized]) -> Quantized:
        at = Placement(torch.cat([q.at.scale for q in parts]), torch.cat([q.at.zero for q in parts]))
        return Quantized(parts[0].grid, torch.cat([q.codes for q in parts]), at, parts[0].group_of)

    first = statistics[0]
    return TwoLevel(
        together([s.scale for s in statistics]), together([s.zero for s in statistics]), first.integer
    )


def two_level(at: Placement, bits: int = 3, rows: int = 16, *, integer: bool = True) -> TwoLevel:
    """Quantise placements ``[out, groups]``.

    Args:
        at: scales and zeros of the first level; not changed.
        bits: of a code of theirs.
        rows: consecutive rows that share a second scale and zero, held in 16 bits each.
        integer: whether zeros are levels.
    """
    grid = IntegerGrid(bits, zero="real", scales="float16")

    def held(statistic: Tensor) -> Quantized:
        return nearest(statistic.T.contiguous(), grid, rows)

    return TwoLevel(held(at.scale), held(at.zero), integer)
