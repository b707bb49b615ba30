"""A linear layer that holds its weight as codes of a few bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.kernels import group_int4 as kernel
from openwork.kernels.group_int4 import Int4Groups
from openwork.layouts.coded import CodedLinear
from openwork.layouts.csr import CSR
from openwork.layouts.outliers import OUTLIERS, Outliers, check_outliers
from openwork.quantization import FloatGrid, Grid, IntegerGrid, Placement, Quantized
from openwork.quantization.codes import pack, unpack
from openwork.quantization.grids import SCALES
from openwork.quantization.two_level import TwoLevel

MOST_SAMPLES = 512
"""Up to so many samples, decoding in the kernel for each of them is faster than decoding once for a dense product."""


class QuantizedLinear(CodedLinear):
    """``y = x Wᵀ + b`` for inference, with ``W [out, in]`` held as packed codes.

    Few samples on the CPU are computed from codes, where these are integers of at most 4 bits with scales of 16 bits in groups of
    16 inputs or multiples: the kernel of :class:`~openwork.layouts.group_int4.GroupInt4Linear` reads them in a form of its own,
    made at the first such call (half a byte a weight and 6 bytes for 16), without groups that are zero throughout. In every other
    case the weight is decoded at each call, for a dense product: the memory of the codes at the speed of decoding.

    ==================  =============================  =====================================================================
    ``codes``           uint8 ``[out, bytes]``         packed row by row, the low bits of a byte first
    ``scale``           ``[out, groups]``              in the precision that the grid stores; or, with statistics in two levels:
    ``scale_codes``     uint8 ``[groups, bytes]``      packed codes of the scales, and ``zero_codes`` of the zeros
    ``scale_scale``     float16 ``[groups, runs]``     their scales; ``scale_zero`` their zero points; ``zero_...`` likewise
    ``zero``            uint8 ``[out, groups]``        zero points of asymmetric integers
    ``group_of``        int32 ``[in]``                 the group of each input
    ``outlier_values``  float16 ``[kept]``             weights that are not rounded, where there are any, with
    ``outlier_crow``    int32 ``[out + 1]``            where each row of them starts, and
    ``outlier_col``     uint16 ``[kept]``              their inputs
    ==================  =============================  =====================================================================

    Args:
        quantized: the codes; copied.
        bias: ``[out]`` or None; copied.
        statistics: two-level scales and zeros, instead of those in ``quantized``.
        outliers: weights beside the codes, at places that decode to zero.

    Raises:
        ValueError: a group, an input or an outlier that the arrays cannot hold.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        quantized: Quantized,
        bias: Tensor | None = None,
        *,
        statistics: TwoLevel | None = None,
        outliers: Outliers | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = quantized.codes.shape
        self.grid: Grid = quantized.grid
        self._held("codes", pack(quantized.codes, self.grid.bits))
        self._held("group_of", quantized.group_of.int())
        self.statistics = statistics is not None
        if statistics is None:
            self._held("scale", quantized.at.scale.to(_precision(self.grid)))
            if isinstance(self.grid, IntegerGrid) and not self.grid.symmetric:
                whole = self.grid.holds_zero
                self._held("zero", quantized.at.zero.to(torch.uint8 if whole else _precision(self.grid)))
        else:
            for name, level in (("scale", statistics.scale), ("zero", statistics.zero)):
                self.statistics_grid, self.statistics_group = level.grid, level.group_of
                self._held(f"{name}_codes", pack(level.codes, level.grid.bits))
                self._held(f"{name}_scale", level.at.scale.half())
                self._held(f"{name}_zero", level.at.zero.half())
        if outliers is not None:
            for name, array in outliers.arrays().items():
                self._held(name, array)
        held = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_parameter("bias", held)
        self.refresh()

    def refresh(self) -> Self:
        """Take the buffers as they are now, after something wrote to them."""
        self._groups: Int4Groups | None = None
        return self

    @property
    def computes_from_codes(self) -> bool:
        """Whether few samples on the CPU are computed without decoding the weight."""
        chunks = self.get_buffer("group_of")[:: kernel.GROUP].repeat_interleave(kernel.GROUP)[
            : self.in_features
        ]
        return (
            isinstance(self.grid, IntegerGrid)
            and self.grid.bits <= kernel.LARGEST_CODE.bit_length()
            and not self.statistics
            and OUTLIERS[0] not in self._buffers
            and self.get_buffer("scale").dtype in kernel.STATISTIC_DTYPES
            and self.get_buffer("codes").is_cpu
            and torch.equal(chunks, self.get_buffer("group_of"))
        )

    def _in_groups(self) -> Int4Groups:
        """The codes as the kernel reads them: 16 inputs with a scale and a zero each, those that are zero throughout left out."""
        if self._groups is None:
            filling = (0, -self.in_features % kernel.GROUP)
            at = self._placement()[:, self.get_buffer("group_of").long()[:: kernel.GROUP]]
            at = Placement(*(t.expand(self.out_features, -1).contiguous() for t in (at.scale, at.zero)))
            codes = unpack(self.get_buffer("codes"), self.grid.bits, self.in_features)
            cells = nn.functional.pad(codes, filling).view(self.out_features, -1, kernel.GROUP)
            inside = nn.functional.pad(torch.ones_like(codes), filling).view_as(cells).bool()
            kept = (inside & (cells != at.zero[..., None])).any(2)
            topology = CSR.from_mask(kept)
            dtype = self.get_buffer("scale").dtype
            arrays = kernel.pack_codes(cells[kept]), at.scale[kept].to(dtype), at.zero[kept].to(dtype)
            shape = self.out_features, self.in_features
            self._groups = kernel.int4_groups(*arrays, topology.crow, topology.col, shape)
        return self._groups

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(fn, recurse).refresh()

    def _held(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor.detach().clone())

    def _placement(self) -> Placement:
        if self.statistics:
            scale, zero = (self._statistic(name) for name in ("scale", "zero"))
            return Placement(scale, zero.round())
        scale = self.get_buffer("scale").float()
        if "zero" in self._buffers:
            return Placement(scale, self.get_buffer("zero").float())
        middle = float(2 ** (self.grid.bits - 1)) if isinstance(self.grid, IntegerGrid) else 0.0
        return Placement(scale, torch.full_like(scale, middle))

    def _statistic(self, name: str) -> Tensor:
        codes = unpack(self.get_buffer(f"{name}_codes"), self.statistics_grid.bits, self.out_features)
        at = Placement(self.get_buffer(f"{name}_scale").float(), self.get_buffer(f"{name}_zero").float())
        return self.statistics_grid.decode(codes, at[:, self.statistics_group]).T

    @property
    def weight(self) -> Tensor:
        """The dense weight that the codes stand for, float32, made anew for whoever asks."""
        codes = unpack(self.get_buffer("codes"), self.grid.bits, self.in_features)
        weight = self.grid.decode(codes, self._placement()[:, self.get_buffer("group_of").long()])
        if OUTLIERS[0] in self._buffers:
            weight = weight + self._outliers().dense()
        return weight

    def _outliers(self) -> Outliers:
        values, crow, col = (self.get_buffer(name) for name in OUTLIERS)
        return Outliers(CSR((self.out_features, self.in_features), crow, col.int()), values.float())

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``."""
        few = (
            x.is_cpu
            and x.numel() <= MOST_SAMPLES * self.in_features
            and not (x.requires_grad and torch.is_grad_enabled())
        )
        if few and self.computes_from_codes:
            bias = None if self.bias is None else self.bias.float()
            return self._in_groups().linear(x.float(), bias).to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        """Sizes and the grid."""
        bits = 8 * self.nbytes / max(1, self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"grid={self.grid}, bits_per_weight={bits:.3g}"
        )

    def _admitted(self, state: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
        """The state, with room for whatever number of outliers comes: they and the groups of the inputs fit."""
        if (wrong := self._wrong_groups(state.get(f"{prefix}group_of"))) is not None:
            raise ValueError(f"{prefix}group_of: {wrong}")
        found = [state.get(prefix + name) for name in OUTLIERS]
        if OUTLIERS[0] in self._buffers and all(isinstance(x, Tensor) for x in found):
            values, crow, col = arrays = [x for x in found if isinstance(x, Tensor)]
            check_outliers(values, crow, col, (self.out_features, self.in_features), prefix)
            for name, array in zip(OUTLIERS, arrays, strict=True):
                self._buffers[name] = torch.empty_like(array, dtype=self.get_buffer(name).dtype)
        self.refresh()
        return state

    def _wrong_groups(self, group_of: object) -> str | None:
        """What is wrong with the groups of the inputs in a state; None where nothing is, or where loading itself will say so."""
        if not isinstance(group_of, Tensor) or group_of.is_meta or group_of.shape != (self.in_features,):
            return None
        groups = (
            self.get_buffer("scale_codes").shape[0] if self.statistics else self.get_buffer("scale").shape[1]
        )
        if group_of.is_floating_point() or bool(((group_of < 0) | (group_of >= groups)).any()):
            return f"each of {self.in_features} inputs belongs to one of {groups} groups, counted from 0"
        return None


def _precision(grid: Grid) -> torch.dtype:
    return SCALES[grid.scales] if isinstance(grid, (IntegerGrid, FloatGrid)) else torch.float32
