"""A linear layer that holds its weight as codes of a few bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.layouts.coded import CodedLinear
from openwork.layouts.csr import CSR
from openwork.layouts.from_codes import FromCodes, computes, from_codes
from openwork.layouts.outliers import OUTLIERS, Outliers, check_outliers
from openwork.quantization import FloatGrid, Grid, IntegerGrid, Placement, Quantized
from openwork.quantization.codes import pack, unpack
from openwork.quantization.grids import SCALES
from openwork.quantization.two_level import TwoLevel

MOST_SAMPLES = 512
"""Up to so many samples, decoding in the kernel for each of them is faster than decoding once for a dense product."""


class QuantizedLinear(CodedLinear):
    """``y = x Wᵀ + b`` for inference, with ``W [out, in]`` held as packed codes.

    Few samples on the CPU are computed from codes, integers of any size and floats of up to 4 bits: kernels read them in a form
    of their own (:mod:`openwork.layouts.from_codes`), made at the first such call: half a byte a weight, or one where codes have
    more than 4 bits, and 6 bytes for each 16 of them, 10 with scales of 32 bits; groups of 16 that are zero throughout take none.
    Many samples, gradients, larger floats and other devices decode the weight at each call, for a dense product.

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
        self._from_codes: FromCodes | None = None
        return self

    @property
    def computes_from_codes(self) -> bool:
        """Whether few samples are computed without decoding the weight."""
        return computes(self.grid) and self.get_buffer("codes").is_cpu

    def _arranged(self) -> FromCodes:
        """The codes as the kernels read them, made when they are first needed."""
        if self._from_codes is None:
            at, dtype = (
                self._placement(),
                torch.float32 if self.statistics else self.get_buffer("scale").dtype,
            )
            at = Placement(at.scale.to(dtype), at.zero.to(dtype))
            codes = unpack(self.get_buffer("codes"), self.grid.bits, self.in_features)
            beside = None
            if OUTLIERS[0] in self._buffers:
                outliers = self._outliers()
                beside = outliers.topology, outliers.values
            quantized = Quantized(self.grid, codes, at, self.get_buffer("group_of"))
            self._from_codes = from_codes(quantized, beside)
        return self._from_codes

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
            return self._arranged().linear(x.float(), bias).to(x.dtype)
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
        self._require_finite(state, prefix)
        found = [state.get(prefix + name) for name in OUTLIERS]
        if OUTLIERS[0] in self._buffers and all(isinstance(x, Tensor) for x in found):
            values, crow, col = arrays = [x for x in found if isinstance(x, Tensor)]
            check_outliers(values, crow, col, (self.out_features, self.in_features), prefix)
            for name, array in zip(OUTLIERS, arrays, strict=True):
                self._buffers[name] = torch.empty_like(array, dtype=self.get_buffer(name).dtype)
        self.refresh()
        return state

    def _require_finite(self, state: Mapping[str, Any], prefix: str) -> None:
        """Raise ValueError if scales and zeros in a state make weights that are not finite."""
        found: dict[str, Tensor] = {}
        for name, buffer in self._buffers.items():
            tensor = state.get(prefix + name)
            if (
                not name.endswith(("scale", "zero"))
                or buffer is None
                or not isinstance(tensor, Tensor)
                or tensor.is_meta
            ):
                continue
            if tensor.shape != buffer.shape:
                return  # loading itself will say so
            found[name] = tensor.float()
            if not bool(found[name].isfinite().all()):
                raise ValueError(
                    f"{prefix}{name} holds numbers that are not finite, and so would be the weights"
                )
        if "scale" in found:
            largest = float(self.grid.levels().abs().max()) if isinstance(self.grid, FloatGrid) else 2.0**8
            zero = found.get("zero", torch.zeros(()))
            if not bool((found["scale"].abs() * (zero.abs() + largest)).isfinite().all()):
                raise ValueError(f"{prefix}scale is so large that weights would not be finite")

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
