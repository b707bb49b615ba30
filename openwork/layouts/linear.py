"""A linear layer that owns only its kept weights.

``y = x Wᵀ + b`` where ``W [out, in]`` exists nowhere: the product runs over kept weights only, forward and
backward. What the layer holds, and how it is saved and loaded: :mod:`openwork.layouts.layer`.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from openwork.kernels.execution import is_native
from openwork.kernels.gradient import gradient_at, gradient_rows
from openwork.kernels.linear import Prepared, prepare, sparse_linear
from openwork.kernels.tiles import sparse_linear_tiles
from openwork.layouts.csr import CSR, described
from openwork.layouts.fitting import check_held, topology_of
from openwork.layouts.layer import SparseLayer


class SparseLinear(SparseLayer[Prepared], nn.Linear):  # type: ignore[misc]  # torch says that bias is a Tensor
    """``nn.Linear`` that stores, trains and multiplies kept weights only. The dense matrix is never
    allocated.

    It *is* an ``nn.Linear`` to whoever asks; :attr:`weight` gives the dense tensor, as a copy. (Initialisers
    that write into ``layer.weight`` write into that copy. A new layer is already initialised, for the fan-in
    of each unit.)

    Args:
        in_features: size of an input.
        out_features: size of an output.
        bias: learn an additive bias.
        sparsity: fraction of zeros, in [0, 1]: ``round((1 - sparsity) * in * out)`` random connections are
            kept.
        kept: exact number of random connections, instead of ``sparsity``.
        topology: the connections themselves, instead of either.
        generator: CPU generator for the random topology and the initial weights; torch's own if None.
        device: where the tensors live.
        dtype: of weights and bias; torch's default if None.
    """

    _made_by = "SparseLinear.from_linear(linear, kept)"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float | None = None,
        kept: int | None = None,
        topology: CSR | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would allocate the dense weight
        self.in_features, self.out_features = in_features, out_features
        self._hold(topology, sparsity, kept, bias, generator, device, dtype)

    @classmethod
    def from_values(cls, topology: CSR, values: Tensor, bias: Tensor | None = None) -> Self:
        """A layer that holds copies of ``values [kept]`` and ``bias [out]``, with their dtype and device."""
        check_held(topology, values, bias)
        layer = cls(
            topology.shape[1],
            topology.shape[0],
            bias is not None,
            topology=topology,
            generator=torch.Generator(),  # what it draws is replaced below; nobody else's numbers are spent
            device=values.device,
            dtype=values.dtype,
        )
        return layer._fill(values, bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, kept: Tensor | CSR) -> Self:
        """The layer that ``linear`` becomes with only some of its connections; ``linear`` is not changed.

        Args:
            linear: a dense layer.
            kept: the connections to keep, which may be zero: a boolean mask ``[out, in]`` or a topology.
        """
        topology = topology_of(linear.weight, kept)
        positions = topology.positions().to(linear.weight.device)
        layer = cls.from_values(topology, linear.weight.detach().flatten()[positions], linear.bias)
        return layer._like(linear)

    def to_linear(self) -> nn.Linear:
        """An ordinary dense ``nn.Linear`` with copies of the same weights."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return self._densified(linear)

    def to_dense(self) -> nn.Linear:
        """As :meth:`to_linear`."""
        return self.to_linear()

    @property
    def weight_shape(self) -> tuple[int, int]:
        """``[out, in]``."""
        return self.out_features, self.in_features

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``."""
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"this layer takes [..., {self.in_features}], not {described(x)}")
        x = self._in_precision(x)
        return self._observed(x, sparse_linear(x, self.weight_values, self.prepared, self.bias))

    def takes_tiles(self, x: Tensor) -> bool:
        """Whether the layer can compute on tiles where it would see ``x [batch, in]`` by itself. While it is observed it cannot:
        observations are rows.
        """
        if x.dtype is not self.weight_values.dtype:
            x = self._in_precision(x[:0])
        return not self.observe and is_native(x, self.weight_values, self.bias)

    def on_tiles(self, tiles: Tensor, activation: str = "none", batch: int | None = None) -> Tensor:
        """``activation(x Wᵀ + b)`` in a chain of layers: :func:`openwork.kernels.tiles.sparse_linear_tiles`."""
        return sparse_linear_tiles(tiles, self.weight_values, self.prepared, self.bias, activation, batch)

    def gradient_rows(self, first: int, last: int) -> Tensor:
        """Rows of ``dyᵀ x``, summed over the observations."""
        if not self.observations:
            return self.weight_values.detach().new_zeros(last - first, self.in_features)
        return gradient_rows(self.observations, first, last)

    def gradient_at(self, positions: Tensor) -> Tensor:
        """``dyᵀ x`` at flat positions, summed over the observations."""
        total = self.weight_values.detach().new_zeros(positions.numel())
        for x, dy in self.observations:
            total += gradient_at(x, dy, positions)
        return total

    def _noted(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """``x [tokens, in]`` and ``dy [tokens, out]``."""
        return x.reshape(-1, self.in_features), dy.reshape(-1, self.out_features)

    def _prepare_kernels(self, crow: Tensor, col: Tensor) -> Prepared:
        return prepare(crow, col, self.matrix_shape, "weight")
