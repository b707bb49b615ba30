"""Convolutions whose output channels share their taps in blocks, for inference: inputs are loaded once for all
channels of a block.

The convolutions of `row_blocks`, whose storage this is: a tap that only some channels of a block keep is stored
for all of them, with weight zero for the others, so NaN or infinity in an input reaches every channel of a
block that has its tap.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import native, reference
from openwork.kernels.blocked import size_of
from openwork.kernels.conv import check_conv
from openwork.kernels.conv_operators import convolution_of, numbers_of
from openwork.kernels.conv_product import SHARING, Bound, HeldConv, aligned
from openwork.kernels.groups import Groups
from openwork.kernels.planes import Convolution, Geometry, geometry
from openwork.kernels.products import ACTIVATIONS
from openwork.kernels.row_blocks import FEW, row_blocks

HEIGHTS = (8, 4, 2)
"""Output channels that may share a list (csrc/kernels/block_conv.cpp)."""

_library = torch.library.Library("openwork", "FRAGMENT")
_library.define(
    "block_conv(Tensor x, Tensor? bias, Tensor[] arrays, SymInt[] numbers, int height, int blocks, bool grouped,"
    " str activation) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True, eq=False)
class BlockConv(HeldConv):
    """A convolution with weights that no longer change, in blocks of output channels; made by `freeze_blocks`.

    Attributes:
        convolution: its channels, kernel, stride and padding.
        groups: the matrix [out, in * rows * columns] in blocks of rows.
        grouped: whether images lie side by side, or pixels (csrc/planes.h).
        places: rows and columns of an image, and whether it comes or goes in a block -> where the inputs of each entry
            are, made when the first such image comes.
    """

    convolution: Convolution
    groups: Groups
    grouped: bool
    places: dict[tuple[int, int, bool], Tensor] = field(default_factory=dict, repr=False)

    def arrays_for(self, size: tuple[int, int], *, blocked: bool = False) -> list[Tensor]:
        """What the kernel reads for images of `size`."""
        key = (*size, blocked)
        bounds, column, weight, first, *_ = self.groups.arrays
        if key not in self.places:
            table = torch.empty(max(1, self.convolution.matrix[1]), dtype=torch.int32)
            laid = geometry(self.convolution, size, grouped=self.grouped, blocked=blocked)
            native.kernels().tap_places(laid.numbers.data_ptr(), table.data_ptr())
            self.places[key] = table[column.long()]
        return [bounds, self.places[key], weight, first]

    def bind(
        self,
        x: Tensor,
        y: Tensor,
        images: int,
        bias: Tensor | None = None,
        carried: Tensor | None = None,
        activation: str = "none",
    ) -> Bound:
        """As `HeldConv.bind`."""
        arrays = self.arrays_for(size_of(x), blocked=x.dim() == 5 or y.dim() == 5)
        groups = self.groups
        return _bound(
            x, y, images, self.laid(x, y), arrays, groups.height, groups.blocks, bias, carried, activation
        )

    def laid(self, x: Tensor, y: Tensor) -> Geometry:
        """As `HeldConv.laid`."""
        blocked = x.dim() == 5 or y.dim() == 5
        return geometry(self.convolution, size_of(x), grouped=self.grouped, blocked=blocked)

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return self.groups.nbytes + sum(places.nbytes for places in self.places.values())


def freeze_blocks(
    crow: Tensor, col: Tensor, values: Tensor, convolution: Convolution, height: int, *, grouped: bool
) -> BlockConv:
    """Hold a CSR topology of `weight.flatten(1)` in blocks of `height` output channels; later changes of `values` are not
    seen.

    Raises:
        TypeError: the values are not float32 on the CPU.
        ValueError: not a valid topology of `convolution.matrix`, or another height than `HEIGHTS`.
    """
    if height not in HEIGHTS:
        raise ValueError(f"blocks have {', '.join(map(str, sorted(HEIGHTS)))} output channels, not {height}.")
    return BlockConv(convolution, row_blocks(crow, col, values, convolution.matrix, height, FEW), grouped)


def block_conv(x: Tensor, held: BlockConv, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """`activation(conv(x, W) + bias)` for float32 images on the CPU, without gradients.

    Args:
        x: [images, in, rows, columns]; any strides.
        held: from `freeze_blocks`.
        bias: [out].
        activation: one of `linear.ACTIVATIONS`.

    Raises:
        TypeError: another dtype or device.
        ValueError: shapes do not fit, or an unknown activation.
        RuntimeError: a gradient would be needed.
    """
    check_conv(x, held.convolution, bias, activation)
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise TypeError(f"Blocks of channels read float32 images on the CPU, found {x.dtype} on {x.device}.")
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        raise RuntimeError(
            "Blocks of channels have no gradients: call under torch.no_grad(), or train with conv.sparse_conv."
        )
    groups = held.groups
    if not native.enabled():
        values, positions = groups.arrays
        return reference.sparse_conv(x, values, positions, held.convolution, bias, activation)
    arrays = held.arrays_for((x.shape[2], x.shape[3]))
    y: Tensor = torch.ops.openwork.block_conv(
        x, bias, arrays, numbers_of(held.convolution), groups.height, groups.blocks, held.grouped, activation
    )
    return y


def _block_conv(
    x: Tensor,
    bias: Tensor | None,
    arrays: list[Tensor],
    numbers: list[int],
    height: int,
    blocks: int,
    grouped: bool,
    activation: str,
) -> Tensor:
    convolution, size = convolution_of(numbers), (x.shape[2], x.shape[3])
    y = x.new_empty(x.shape[0], convolution.outputs, *convolution.size(*size))
    laid = geometry(convolution, size, grouped=grouped)
    x = aligned(x.contiguous(), laid)
    _bound(x, y, x.shape[0], laid, arrays, height, blocks, bias, None, activation)()
    return y


def _bound(
    x: Tensor,
    y: Tensor,
    images: int,
    laid: Geometry,
    arrays: list[Tensor],
    height: int,
    blocks: int,
    bias: Tensor | None,
    carried: Tensor | None,
    activation: str,
) -> Bound:
    bounds, places, weight, first = arrays
    bias = None if bias is None else bias.contiguous()
    work = weight.numel() * laid.grid[0] * laid.grid[1] * images + x.numel() + y.numel()
    arguments = (
        x.data_ptr(), y.data_ptr(), images, laid.numbers.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if carried is None else carried.data_ptr(), ACTIVATIONS.index(activation), x.dim() == 5, y.dim() == 5,
        bounds.data_ptr(), bounds.numel() - 1, places.data_ptr(), weight.data_ptr(), first.data_ptr(), blocks,
        -(-laid.out.channels // height), height, native.threads(work // SHARING),
    )  # fmt: skip
    return Bound(native.kernels().block_conv, arguments, (x, y, laid.numbers, *arrays, bias, carried))


_library.impl("block_conv", _block_conv, "CPU")
torch.library.register_fake(
    "openwork::block_conv",
    lambda x, bias, arrays, numbers, *rest: x.new_empty(
        x.shape[0], numbers[0], *convolution_of(numbers).size(x.shape[2], x.shape[3])
    ),
    lib=_library,
)
