"""LoRC: a low-rank term beside a compressed weight makes up for most of what it lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from openwork.calibrator.contract import Calibrated
from openwork.calibrator.layer import Layer, Solution
from openwork.factorization import Factors, truncated, whitened
from openwork.layouts.low_rank import CompensatedLinear
from openwork.method import method
from openwork.quantization import IntegerGrid, nearest


@method(
    paper="Yao, Wu, Li, Youn, He, ZeroQuant-V2: Exploring Post-training Quantization in LLMs from Comprehensive Study to Low "
    "Rank Compensation, 2023, arXiv 2303.08302",
    kind="calibrate",
)
@dataclass(frozen=True, kw_only=True)
class LoRC(Calibrated):
    """Put ``A B`` beside whatever the stages before have made of the weight: ``y = W_c x + A (B x)``.

    ``A B`` is the best product of rank ``k`` for the residual ``W - W_c``: in its own norm, or, ``weighted``, in the norm of the
    outputs, ``||X (W - W_c - A B)^T||``, which the singular value decomposition of the residual times the Cholesky factor of
    ``X^T X`` gives exactly. Rank 8 is about 1 % more weights in large layers.

    It helps where the residual has few large singular values, as that of pruning often has; that of rounding is nearly flat.
    The zeros of ``W_c`` stay; the layer becomes a :class:`~openwork.layouts.low_rank.CompensatedLinear`. A last stage: later
    ones would not see the term.

    Args:
        rank: of the term, 4 to 32; the authors' 8. Layers with fewer rows or columns take what they have.
        weighted: look at the inputs.
        bits: of the factors, rounded for each of the ranks; None keeps them as they are. The authors find no loss at 8.
        damping: of ``X^T X``, relative to its mean diagonal.
    """

    reads_zeros: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})

    rank: int = 8
    weighted: bool = True
    bits: int | None = 8
    damping: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 0:
            raise ValueError(f"a rank is at least 0; got {self.rank}")
        if self.bits is not None:
            IntegerGrid(self.bits)

    def solve(self, layer: Layer) -> Solution:
        residual = layer.dense - layer.weight
        rank = min(self.rank, *residual.shape)
        if self.weighted:
            factors = whitened(residual, layer.statistics.gram, rank, self.damping)
        else:
            factors = truncated(residual, rank)
        left, right = factors.left, factors.right
        if self.bits is not None and rank:
            left, right = _rounded(left.T, self.bits).T, _rounded(right, self.bits)

        def beside(module: nn.Module) -> nn.Module:
            if type(module) is not nn.Linear:
                raise ValueError(
                    f"{layer.name} belongs to a {type(module).__name__}: a low-rank term is put beside an nn.Linear; exclude it"
                )
            return CompensatedLinear.around(module, left, right)

        return Solution(
            layer.weight,
            parts={"compensation": Factors(left, right, factors.energy)},
            effective=layer.weight + left @ right,
            module=beside,
        )


def _rounded(factor: Tensor, bits: int) -> Tensor:
    """Rows ``[k, n]`` on symmetric grids of their own."""
    return nearest(factor, IntegerGrid(bits, symmetric=True)).dense()
