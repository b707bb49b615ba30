"""A linear layer of 1 x 16 groups in 4 bits: a group of neighbouring inputs is absent, or codes with a scale and a zero.

Half the groups kept, a weight takes 3.5 bits on average, 9 times less than float32 and 4.6 times less than bfloat16.

Paper: Zeng et al., "GQSA: Group Quantization and Sparsity", IJCNLP-AACL 2025, arXiv:2412.17560.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from openwork.kernels import group_int4 as kernel
from openwork.kernels.code_groups import GROUP, groups_in
from openwork.kernels.group_int4 import LARGEST_CODE, Int4Groups
from openwork.layouts.coded import CodedLinear
from openwork.layouts.csr import CSR

STORED = ("codes", "scales", "zeros", "row_ptr", "group_col")
"""What stands for ``weight`` in the ``state_dict``."""


class GroupInt4Linear(CodedLinear):
    """A linear layer for inference whose weight ``[out, in]`` is kept in groups of 16 inputs of a row, in 4 bits.

    A weight is ``(code - zero) * scale``; inputs, products, sums and outputs are float32 (inputs of another precision are
    converted, and the outputs have theirs). All but the bias are buffers, in the ``state_dict`` under these names:

    =============  =======================  ===================================================================
    ``codes``      uint8 ``[groups, 8]``    byte i has code 2 i in its lower half, code 2 i + 1 in its upper
    ``scales``     float16 ``[groups]``     or bfloat16, or float32
    ``zeros``      as ``scales``            need not be whole numbers
    ``row_ptr``    int32 ``[out + 1]``      where the groups of each row start
    ``group_col``  int32 ``[groups]``       group g covers the inputs ``16 * group_col[g]`` and on
    ``bias``       ``[out]``                Parameter without gradient, or None
    =============  =======================  ===================================================================

    Scales and zeros may be rewritten, as tuning from end to end does; call :meth:`refresh` afterwards.

    Args:
        codes, scales, zeros, row_ptr, group_col: the groups, as above; copied.
        in_features: size of an input; the last group may stick out.
        bias: ``[out]``, float32; copied.

    Raises:
        TypeError: other dtypes or devices.
        ValueError: arrays that contradict each other, indices out of range, weights that are not finite.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    row_ptr: Tensor
    group_col: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor,
        row_ptr: Tensor,
        group_col: Tensor,
        *,
        in_features: int,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, row_ptr.numel() - 1
        arrays = codes, scales, zeros, row_ptr, group_col
        self._held = kernel.int4_groups(*arrays, (self.out_features, in_features))
        if bias is not None and bias.shape != (self.out_features,):
            raise ValueError(f"bias must be [{self.out_features}], found {list(bias.shape)}")
        for name, array in zip(STORED, arrays, strict=True):
            self.register_buffer(name, array.detach().clone())
        held = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_parameter("bias", held)

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        group: int = GROUP,
        dtype: torch.dtype = torch.float16,
    ) -> Self:
        """Round a dense weight to the nearest codes, group by group.

        The range of a group is that of its weights and zero, and the zero is a whole number: a weight that is zero stays
        exactly zero, so a mask inside the groups survives.

        Args:
            weight: ``[out, in]``, finite. Not changed.
            mask: boolean ``[out, in]``, True = kept: a group is kept if any of its weights is, and the others in it become
                zero. None = wherever the weight is not zero.
            bias: ``[out]``.
            group: inputs in a group: 16.
            dtype: of scales and zeros: float16 or bfloat16.

        Raises:
            ValueError: shapes, another size of group, weights that are not finite or that no scale of ``dtype`` reaches.
        """
        if group != GROUP:
            raise ValueError(f"the kernel computes groups of {GROUP} inputs, not {group}")
        if weight.dim() != 2 or (
            mask is not None and (mask.shape != weight.shape or mask.dtype != torch.bool)
        ):
            found = "None" if mask is None else f"{mask.dtype} {list(mask.shape)}"
            raise ValueError(
                f"a weight [out, in] has a boolean mask of its shape, found {list(weight.shape)} and {found}"
            )
        if not bool(weight.isfinite().all()):
            raise ValueError("only finite weights can be rounded to codes: the weight has NaN or infinity")
        weight = weight.detach().float()
        mask = weight != 0 if mask is None else mask
        rows, columns = weight.shape
        filling = (0, -columns % GROUP)
        cells = nn.functional.pad(weight * mask, filling).view(rows, -1, GROUP)
        kept = nn.functional.pad(mask, filling).view(rows, -1, GROUP).any(2)
        topology = CSR.from_mask(kept)
        codes, scales, zeros = quantized(cells[kept], dtype)
        arrays = kernel.pack_codes(codes), scales, zeros, topology.crow, topology.col
        return cls(*arrays, in_features=columns, bias=None if bias is None else bias.float())

    @property
    def weight(self) -> Tensor:
        """The dense weight that the codes stand for, float32, made anew for whoever asks; differentiable in scales and zeros."""
        groups = self.topology
        cells = self.codes.new_zeros((groups.shape[0] * groups.shape[1], GROUP), dtype=torch.float32)
        cells = cells.index_put((groups.positions(),), kernel.decode(self.codes, self.scales, self.zeros))
        return cells.view(self.out_features, -1)[:, : self.in_features]

    @property
    def topology(self) -> CSR:
        """Which groups are kept: ``(out, ceil(in / 16))``."""
        return CSR((self.out_features, groups_in(self.in_features)), self.row_ptr, self.group_col)

    @property
    def density(self) -> float:
        """Fraction of groups that are kept."""
        return self.topology.density

    @property
    def nbytes(self) -> int:
        """Bytes of the weight as the kernel reads it: 14 a group, and 8 a row."""
        return self._held.nbytes

    def forward(self, x: Tensor) -> Tensor:
        """``x Wᵀ + b``, ``x [..., in]`` to ``[..., out]``, without gradients."""
        bias = None if self.bias is None else self.bias.float()
        y = self._held.linear(x.float(), bias)
        return y.to(x.dtype)

    def refresh(self) -> Self:
        """Take the buffers as they are now, after something wrote to them; checks them again."""
        self._held = self._hold()
        return self

    def _hold(self) -> Int4Groups:
        arrays = self.codes, self.scales, self.zeros, self.row_ptr, self.group_col
        return kernel.int4_groups(*arrays, (self.out_features, self.in_features))

    def to_linear(self) -> nn.Linear:
        """An ordinary dense ``nn.Linear`` with the weights that the codes stand for."""
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        dense.weight = nn.Parameter(self.weight.detach())
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone())
        return dense.requires_grad_(False).train(self.training)

    def extra_repr(self) -> str:
        """Sizes and density."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"groups={self.group_col.numel()}, density={self.density:.4g}"
        )

    def _admitted(self, state: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
        """The state, with room for whatever number of groups comes: they fit."""
        found = [name for name in STORED if isinstance(state.get(prefix + name), Tensor)]
        if found:
            if lacking := [prefix + name for name in STORED if name not in found]:
                raise ValueError(f"{prefix}codes: groups are loaded whole; {', '.join(lacking)} is missing")
            if absent := [prefix + name for name in STORED if state[prefix + name].is_meta]:
                raise ValueError(f"{absent[0]}: a tensor on the meta device has no contents")
            codes, scales, zeros, row_ptr, group_col = arrays = [state[prefix + name] for name in STORED]
            shape = self.out_features, self.in_features
            try:
                held = kernel.int4_groups(codes, scales, zeros, row_ptr, group_col, shape)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{prefix}codes: {error}") from error
            for name, array in zip(STORED, arrays, strict=True):
                setattr(self, name, array.detach().clone())
            self._held = held
        return state


def quantized(cells: Tensor, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros of groups rounded to the nearest: the range of a group is that of its weights and zero.

    Args:
        cells: float32 ``[groups, 16]``, finite.
        dtype: of scales and zeros.

    Returns:
        Codes uint8 ``[groups, 16]``, scales and zeros ``[groups]``; the zeros are whole numbers.

    Raises:
        ValueError: a range too wide for scales of ``dtype``.
    """
    low, high = cells.amin(1).clamp(max=0), cells.amax(1).clamp(min=0)
    # A scale below the smallest is rounded up to it, and its weights to zero.
    wanted = ((high - low) / LARGEST_CODE).clamp(min=torch.finfo(dtype).smallest_normal)
    scales = wanted.to(dtype)
    if not bool(scales.isfinite().all()):
        raise ValueError(
            f"weights of a range of {float((high - low).max()):.3g} need scales that {dtype} does not have: use bfloat16"
        )
    step = scales.float()
    zeros = (-low / step).round().clamp(0, LARGEST_CODE)
    codes = ((cells / step[:, None]).round() + zeros[:, None]).clamp(0, LARGEST_CODE)
    return codes.to(torch.uint8), scales, zeros.to(dtype)
