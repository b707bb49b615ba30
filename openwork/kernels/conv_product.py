"""The native product of a sparse weight with images: what the operators of convolutions and whole networks call.

Nothing is checked here, so nothing may arrive unchecked: shapes by `conv.check_conv`, the topology by
`conv_index.prepare_conv`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from openwork.kernels import native
from openwork.kernels.planes import Geometry
from openwork.kernels.products import ACTIVATIONS


def multiply(
    x: Tensor,
    laid: Geometry,
    walk: list[Tensor],
    shape: tuple[int, int, int],
    *,
    values: Tensor | None = None,
    words: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """The native kernel: [images, *shape], with the weights as values or as a woven stream."""
    y = x.new_empty(x.shape[0], *shape)
    x = aligned(x.contiguous(), laid)
    bound_product(
        x, y, x.shape[0], laid, walk, values=values, words=words, bias=bias, activation=activation
    )()
    return y


LINE = 64
"""Bytes that inputs read in place are aligned to; new tensors are."""

SHARING = 8
"""How much more work than elsewhere is worth sharing: threads that share an image wait for each other three times."""


@dataclass(frozen=True, eq=False)
class Bound:
    """A call of a native kernel on certain memory: made once, for less Python in each call.

    Attributes:
        kernel: the native function.
        arguments: addresses and sizes.
        held: the tensors that the addresses are of.
    """

    kernel: Callable[..., None]
    arguments: tuple[int | bool, ...]
    held: tuple[Tensor | None, ...] = field(repr=False)

    def __call__(self) -> None:
        """Compute."""
        self.kernel(*self.arguments)


class HeldConv(ABC):
    """A convolution with weights that no longer change, in a form that a kernel reads."""

    @abstractmethod
    def laid(self, x: Tensor, y: Tensor) -> Geometry:
        """How the kernel sees such images."""

    @abstractmethod
    def bind(
        self,
        x: Tensor,
        y: Tensor,
        images: int,
        bias: Tensor | None = None,
        carried: Tensor | None = None,
        activation: str = "none",
    ) -> Bound:
        """What :meth:`into` calls, to be called again: x is aligned to 64 bytes, as new tensors are."""

    def into(
        self,
        x: Tensor,
        y: Tensor,
        images: int,
        bias: Tensor | None = None,
        carried: Tensor | None = None,
        activation: str = "none",
    ) -> None:
        """`y = activation(conv(x, W) + bias + carried)` into memory that is there already: what whole networks run.

        Nothing is checked: shapes were when the network was packed.

        Args:
            x: [images, in, rows, columns], or in blocks (`blocked.block`) if images lie side by side here.
            y: overwritten; [images, out, rows, columns] or in blocks, as x.
            images: how many there are.
            bias: [out].
            carried: like y, and may be y: a shortcut around the convolution.
            activation: one of `products.ACTIVATIONS`.
        """
        self.bind(aligned(x, self.laid(x, y)), y, images, bias, carried, activation)()


def bound_product(
    x: Tensor,
    y: Tensor,
    images: int,
    laid: Geometry,
    walk: list[Tensor],
    *,
    values: Tensor | None = None,
    words: Tensor | None = None,
    bias: Tensor | None = None,
    carried: Tensor | None = None,
    activation: str = "none",
) -> Bound:
    """The native kernel into a `y` that is there already, plus `carried`, which may be `y` itself. All are contiguous.

    x is [images, channels, rows, columns] and `aligned`, or in blocks of 16 images (`openwork.kernels.blocked`) where the
    geometry is grouped; y as well, and carried is like y.
    """
    col, runs, buckets, parts, *permutation = walk
    values = None if values is None else values.contiguous()
    bias = None if bias is None else bias.contiguous()
    work = col.numel() * laid.grid[0] * laid.grid[1] * images + x.numel() + y.numel()
    arguments = (
        x.data_ptr(), y.data_ptr(), images, laid.numbers.data_ptr(), _address(words), _address(values),
        _address(*permutation), _address(bias), _address(carried), ACTIVATIONS.index(activation), x.dim() == 5,
        y.dim() == 5, col.data_ptr(), col.numel(), runs.data_ptr(), buckets.data_ptr(), parts.data_ptr(),
        buckets.shape[0], buckets.shape[1], native.threads(work // SHARING),
    )  # fmt: skip
    return Bound(
        native.kernels().sparse_conv, arguments, (x, y, laid.numbers, *walk, values, words, bias, carried)
    )


def aligned(x: Tensor, laid: Geometry) -> Tensor:
    """`x`, or a copy of it where the kernel reads it as it is and it does not begin at a cache line."""
    return x.clone() if laid.as_is and x.data_ptr() % LINE else x


def weight_product(x: Tensor, dy: Tensor, laid: Geometry, walk: list[Tensor]) -> Tensor:
    """The gradient of the weight at its nonzeros, [kept]."""
    col, runs, buckets, parts = walk
    x, dy = x.contiguous(), dy.contiguous()
    gradient = x.new_empty(col.numel()) if x.shape[0] else x.new_zeros(col.numel())
    work = col.numel() * laid.grid[0] * laid.grid[1] * x.shape[0] + x.numel() + dy.numel()
    native.kernels().conv_weight_gradient(
        x.data_ptr(), dy.data_ptr(), x.shape[0], laid.numbers.data_ptr(), gradient.data_ptr(),
        col.data_ptr(), runs.data_ptr(), buckets.data_ptr(), parts.data_ptr(), buckets.shape[0],
        buckets.shape[1], native.threads(work),
    )  # fmt: skip
    return gradient


def _address(tensor: Tensor | None = None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
