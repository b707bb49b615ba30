"""A convolution that owns only its kept weights.

``y = conv(x, W) + b`` where ``W [out, in, rows, columns]`` exists nowhere: each kept weight adds a shifted
plane to its output, forward and backward, without a copy of the inputs for each tap. What the layer holds,
and how it is saved and loaded: :mod:`openwork.layouts.layer`.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from openwork.kernels.conv import Convolution, PreparedConv, conv_weight_gradient, prepare_conv, sparse_conv
from openwork.layouts.csr import CSR, described
from openwork.layouts.fitting import check_held, topology_of
from openwork.layouts.layer import SparseLayer

Pair = tuple[int, int]


class SparseConv2d(SparseLayer[PreparedConv], nn.Conv2d):  # type: ignore[misc]  # torch says that bias is a Tensor
    """``nn.Conv2d`` that stores, trains and multiplies kept weights only. The dense weight is never
    allocated.

    It *is* an ``nn.Conv2d`` to whoever asks; :attr:`weight` gives the dense tensor, as a copy. Convolutions in
    groups, with dilation, or padded with anything but zeros have no sparse form, see :func:`unsuited`.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel_size: rows and columns of taps, or one number for both.
        stride: alike.
        padding: zeros on either side, alike.
        bias: learn an additive bias.
        sparsity: fraction of zeros, in [0, 1].
        kept: exact number of random connections, instead of ``sparsity``.
        topology: the connections themselves, of the matrix ``[out, in * rows * columns]``, instead of either.
        generator: CPU generator for the random topology and the initial weights; torch's own if None.
        device: where the tensors live.
        dtype: of weights and bias; torch's default if None.
    """

    _made_by = "SparseConv2d.from_conv(conv, kept)"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        bias: bool = True,
        *,
        sparsity: float | None = None,
        kept: int | None = None,
        topology: CSR | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not nn.Conv2d's, which would allocate the dense weight
        plain = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False, device="meta")
        vars(self).update({name: value for name, value in vars(plain).items() if name not in vars(self)})
        self.convolution = convolution_of(self)
        self._hold(topology, sparsity, kept, bias, generator, device, dtype)

    @classmethod
    def from_values(
        cls, convolution: Convolution, topology: CSR, values: Tensor, bias: Tensor | None = None
    ) -> Self:
        """A layer that holds copies of ``values [kept]`` and ``bias [out]``, with their dtype and device."""
        check_held(topology, values, bias)
        layer = cls(
            convolution.inputs,
            convolution.outputs,
            convolution.kernel,
            convolution.stride,
            convolution.padding,
            bias is not None,
            topology=topology,
            generator=torch.Generator(),  # what it draws is replaced below; nobody else's numbers are spent
            device=values.device,
            dtype=values.dtype,
        )
        return layer._fill(values, bias)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, kept: Tensor | CSR) -> Self:
        """The layer that ``conv`` becomes with only some of its connections; ``conv`` is not changed.

        Args:
            conv: a dense convolution.
            kept: the connections to keep, which may be zero: a boolean mask of the weight's shape, or the
                topology of the weight as a matrix.

        Raises:
            ValueError: the convolution has no sparse form, or the connections another shape.
        """
        if reason := unsuited(conv):
            raise ValueError(f"this convolution stays dense: {reason}")
        topology = topology_of(conv.weight, kept)
        positions = topology.positions().to(conv.weight.device)
        values = conv.weight.detach().flatten()[positions]
        return cls.from_values(convolution_of(conv), topology, values, conv.bias)._like(conv)

    def to_conv(self) -> nn.Conv2d:
        """An ordinary dense ``nn.Conv2d`` with copies of the same weights."""
        c = self.convolution
        bias = self.bias is not None
        conv = nn.Conv2d(c.inputs, c.outputs, c.kernel, c.stride, c.padding, bias=bias, device="meta")
        return self._densified(conv)

    def to_dense(self) -> nn.Conv2d:
        """As :meth:`to_conv`."""
        return self.to_conv()

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """``[out, in, rows, columns]``."""
        return self.convolution.outputs, self.convolution.inputs, *self.convolution.kernel

    def forward(self, x: Tensor) -> Tensor:
        """``x [images, in, rows, columns]``, or one image without the first axis."""
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"this layer takes [images, {self.in_channels}, rows, columns], not {described(x)}"
            )
        images = self._in_precision(x if x.dim() == 4 else x[None])
        y = self._observed(images, sparse_conv(images, self.weight_values, self.prepared, self.bias))
        return y if x.dim() == 4 else y[0]

    def gradient_rows(self, first: int, last: int) -> Tensor:
        """Rows of the dense gradient, summed over the observations: those of ``last - first`` outputs."""
        c = self.convolution
        shape = (last - first, c.inputs, *c.kernel)
        rows = self.weight_values.detach().new_zeros(shape)
        for x, dy in self.observations:
            rows += conv2d_weight(x, shape, dy[:, first:last].contiguous(), c.stride, c.padding)
        return rows.flatten(1)

    def gradient_at(self, positions: Tensor) -> Tensor:
        """The dense gradient at flat positions, summed over the observations."""
        topology = CSR.from_positions(positions, self.matrix_shape)
        sampled = prepare_conv(topology.crow, topology.col, self.convolution, "positions")
        total = self.weight_values.detach().new_zeros(positions.numel())
        for x, dy in self.observations:
            total += conv_weight_gradient(x, dy, sampled)
        return total

    def _prepare_kernels(self, crow: Tensor, col: Tensor) -> PreparedConv:
        return prepare_conv(crow, col, self.convolution, "weight")


def unsuited(conv: nn.Conv2d, *, groups: bool = False) -> str:
    """Why a convolution has no sparse form; empty where it has. With ``groups`` those are no reason."""
    if conv.groups != 1 and not groups:
        return f"it has {conv.groups} groups, and each is small"
    if tuple(conv.dilation) != (1, 1):
        return f"its kernel is dilated by {tuple(conv.dilation)}"
    if conv.padding_mode != "zeros":
        return f"it is padded with {conv.padding_mode!r}, not with zeros"
    if conv.padding == "same" and any((size - 1) % 2 for size in conv.kernel_size):
        return f"padding 'same' of a kernel {tuple(conv.kernel_size)} is more on one side than on the other"
    return ""


def convolution_of(conv: nn.Conv2d) -> Convolution:
    """Kernel, stride and padding of a convolution that is not :func:`unsuited`."""
    rows, columns = conv.kernel_size
    padding = conv.padding
    if isinstance(padding, str):
        padding = ((rows - 1) // 2, (columns - 1) // 2) if padding == "same" else (0, 0)
    return Convolution(
        conv.out_channels,
        conv.in_channels,
        (rows, columns),
        (conv.stride[0], conv.stride[1]),
        (padding[0], padding[1]),
    )
