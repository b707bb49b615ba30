"""Sparse convolutions for inference only: the weights are woven into their stream once for a size of image.

The results are the bits of `conv.sparse_conv`; what is saved is the weaving, which for a single small image
takes a third of the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openwork.kernels import native, reference
from openwork.kernels.blocked import size_of
from openwork.kernels.conv import PreparedConv, check_conv
from openwork.kernels.conv_operators import convolution_of, numbers_of
from openwork.kernels.conv_product import Bound, HeldConv, bound_product, multiply
from openwork.kernels.planes import Geometry, geometry

_library = torch.library.Library("openwork", "FRAGMENT")
_library.define(
    "frozen_conv(Tensor x, Tensor words, Tensor? bias, Tensor[] walk, SymInt[] numbers, bool grouped,"
    " str activation) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True, eq=False)
class FrozenConv(HeldConv):
    """A convolution with weights that no longer change; made by `freeze_conv`.

    Attributes:
        prepared: the topology.
        values: [kept].
        grouped: whether images lie side by side, or pixels (csrc/planes.h).
        words: rows and columns of an image, and whether it comes or goes in a block -> the woven stream, made when the
            first such image comes.
    """

    prepared: PreparedConv
    values: Tensor = field(repr=False)
    grouped: bool
    words: dict[tuple[int, int, bool], Tensor] = field(default_factory=dict, repr=False)

    def words_for(self, size: tuple[int, int], *, blocked: bool = False) -> Tensor:
        """The stream for images of `size`."""
        key = (*size, blocked)
        if key not in self.words:
            self.words[key] = _woven(self, size, blocked)
        return self.words[key]

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
        laid, blocked = self.laid(x, y), x.dim() == 5 or y.dim() == 5
        words = self.words_for(size_of(x), blocked=blocked)
        walk = self.prepared.walk
        return bound_product(
            x, y, images, laid, walk, words=words, bias=bias, carried=carried, activation=activation
        )

    def laid(self, x: Tensor, y: Tensor) -> Geometry:
        """As `HeldConv.laid`."""
        blocked = x.dim() == 5 or y.dim() == 5
        return geometry(self.prepared.convolution, size_of(x), grouped=self.grouped, blocked=blocked)

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return sum(t.nbytes for t in (self.values, *self.words.values(), *self.prepared.walk))


def freeze_conv(values: Tensor, prepared: PreparedConv, *, grouped: bool) -> FrozenConv:
    """Take a copy of `values` [kept] (float32, CPU). Later changes of `values` are not seen.

    Raises:
        ValueError: not one value for each kept weight.
        TypeError: other dtypes or devices; those have no frozen form, use `conv.sparse_conv`.
    """
    if values.shape != prepared.col.shape:
        raise ValueError(f"values must be [{prepared.kept}], found {list(values.shape)}.")
    if values.dtype != torch.float32 or values.device.type != "cpu":
        raise TypeError(
            f"Only float32 weights on the CPU can be frozen, found {values.dtype} on {values.device}."
        )
    return FrozenConv(prepared, values.detach().clone(), grouped)


def frozen_conv(
    x: Tensor, frozen: FrozenConv, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """`activation(conv(x, W) + bias)` with frozen W: as `conv.sparse_conv`, without gradients."""
    convolution = frozen.prepared.convolution
    check_conv(x, convolution, bias, activation)
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise TypeError(f"Frozen weights multiply float32 inputs on the CPU, found {x.dtype} on {x.device}.")
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        raise RuntimeError(
            "Frozen weights have no gradients: call under torch.no_grad(), or train with conv.sparse_conv"
        )
    if not native.enabled():
        positions = frozen.prepared.positions
        return reference.sparse_conv(x, frozen.values, positions, convolution, bias, activation)
    words = frozen.words_for((x.shape[2], x.shape[3]))
    y: Tensor = torch.ops.openwork.frozen_conv(
        x, words, bias, frozen.prepared.walk, numbers_of(convolution), frozen.grouped, activation
    )
    return y


def _woven(frozen: FrozenConv, size: tuple[int, int], blocked: bool) -> Tensor:
    col, runs, buckets, parts = frozen.prepared.walk
    laid = geometry(frozen.prepared.convolution, size, grouped=frozen.grouped, blocked=blocked)
    words = torch.zeros(int(parts[-1, 2]), dtype=torch.int64)
    places = torch.empty(frozen.prepared.convolution.matrix[1], dtype=torch.int32)
    native.kernels().weave_conv(
        laid.numbers.data_ptr(), frozen.values.data_ptr(), words.data_ptr(), places.data_ptr(), col.data_ptr(),
        col.numel(), runs.data_ptr(), buckets.data_ptr(), parts.data_ptr(), buckets.shape[0], buckets.shape[1],
    )  # fmt: skip
    return words


def _frozen_conv(
    x: Tensor,
    words: Tensor,
    bias: Tensor | None,
    walk: list[Tensor],
    numbers: list[int],
    grouped: bool,
    activation: str,
) -> Tensor:
    convolution, size = convolution_of(numbers), (x.shape[2], x.shape[3])
    laid = geometry(convolution, size, grouped=grouped)
    shape = (convolution.outputs, *convolution.size(*size))
    return multiply(x, laid, walk, shape, words=words, bias=bias, activation=activation)


def _fake(
    x: Tensor,
    words: Tensor,
    bias: Tensor | None,
    walk: list[Tensor],
    numbers: list[int],
    grouped: bool,
    activation: str,
) -> Tensor:
    return x.new_empty(x.shape[0], numbers[0], *convolution_of(numbers).size(x.shape[2], x.shape[3]))


_library.impl("frozen_conv", _frozen_conv, "CPU")
torch.library.register_fake("openwork::frozen_conv", _fake, lib=_library)
