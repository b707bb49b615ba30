"""An embedding that owns only its kept weights.

``y = W[indices]`` where the table ``W [entries, features]`` exists nowhere: each entry has the features that it keeps, and
zeros for the rest. A step moves what the batch looked up, a gradient has the size of what is kept. What the layer holds,
and how it is saved and loaded: :mod:`openwork.layouts.layer`.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from openwork.kernels.embedding import embedding_gradient, sparse_embedding
from openwork.kernels.topology import validate
from openwork.layouts.csr import CSR, described
from openwork.layouts.fitting import check_held, topology_of
from openwork.layouts.layer import SparseLayer

Indices = tuple[Tensor, Tensor]


class SparseEmbedding(SparseLayer[Indices], nn.Embedding):
    """``nn.Embedding`` that stores, trains and looks up kept weights only. The dense table is never allocated.

    It *is* an ``nn.Embedding`` to whoever asks; :attr:`weight` gives the dense table, as a copy. An embedding with
    ``max_norm``, ``scale_grad_by_freq`` or ``sparse`` gradients has no sparse form, see :func:`unsuited`.

    Args:
        num_embeddings: entries of the table.
        embedding_dim: features of an entry.
        padding_idx: an entry that is zero and has no gradient.
        sparsity: fraction of zeros, in [0, 1].
        kept: exact number of random connections, instead of ``sparsity``.
        topology: the connections themselves, of the matrix ``[entries, features]``, instead of either.
        generator: CPU generator for the random topology and the initial weights; torch's own if None.
        device: where the tensors live.
        dtype: of the weights; torch's default if None.
    """

    _made_by = "SparseEmbedding.from_embedding(embedding, kept)"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        sparsity: float | None = None,
        kept: int | None = None,
        topology: CSR | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # not nn.Embedding's, which would allocate the dense table
        plain = nn.Embedding(num_embeddings, embedding_dim, padding_idx, device="meta")
        vars(self).update({name: value for name, value in vars(plain).items() if name not in vars(self)})
        self._hold(topology, sparsity, kept, False, generator, device, dtype)

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, kept: Tensor | CSR) -> Self:
        """The layer that ``embedding`` becomes with only some of its connections; ``embedding`` is not changed.

        Args:
            embedding: a dense embedding.
            kept: the connections to keep, which may be zero: a boolean mask ``[entries, features]`` or a topology.

        Raises:
            ValueError: the embedding has no sparse form, or the connections another shape.
        """
        if reason := unsuited(embedding):
            raise ValueError(f"this embedding stays dense: {reason}")
        topology = topology_of(embedding.weight, kept)
        values = embedding.weight.detach().flatten()[topology.positions().to(embedding.weight.device)]
        check_held(topology, values, None)
        layer = cls(
            *topology.shape,
            embedding.padding_idx,
            topology=topology,
            generator=torch.Generator(),  # what it draws is replaced below; nobody else's numbers are spent
            device=values.device,
            dtype=values.dtype,
        )
        return layer._fill(values, None)._like(embedding)

    def to_embedding(self) -> nn.Embedding:
        """An ordinary dense ``nn.Embedding`` with copies of the same weights."""
        dense = nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta")
        return self._densified(dense)

    def to_dense(self) -> nn.Embedding:
        """As :meth:`to_embedding`."""
        return self.to_embedding()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: standard normal, as ``nn.Embedding`` does, the padding zero."""
        with torch.no_grad():
            drawn = torch.randn(self.weight_values.shape, generator=generator, dtype=torch.float64)
            self.weight_values.copy_(drawn)
            if self.padding_idx is not None:
                first, last = self.weight_crow[self.padding_idx : self.padding_idx + 2].tolist()
                self.weight_values[first:last] = 0

    @property
    def weight_shape(self) -> tuple[int, int]:
        """``[entries, features]``."""
        return self.num_embeddings, self.embedding_dim

    def forward(self, indices: Tensor) -> Tensor:
        """``indices [...]`` of int32 or int64 to ``[..., features]``."""
        if indices.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"this layer takes int32 or int64 indices [...], not {described(indices)}")
        flat = indices.reshape(-1)
        crow, col = self.prepared
        y = sparse_embedding(flat, self.weight_values, crow, col, self.embedding_dim)
        if self.padding_idx is not None:
            y = torch.where((flat == self.padding_idx).unsqueeze(1), y.detach(), y)
        return self._observed(flat, y).view(*indices.shape, self.embedding_dim)

    def gradient_rows(self, first: int, last: int) -> Tensor:
        """Rows of the dense gradient, summed over the observations: those of entries ``first`` to ``last``."""
        rows = self.weight_values.detach().new_zeros(last - first, self.embedding_dim)
        for indices, dy in self.observations:
            among = (indices >= first) & (indices < last)
            rows.index_add_(0, indices[among] - first, dy[among])
        return rows

    def gradient_at(self, positions: Tensor) -> Tensor:
        """The dense gradient at flat positions, summed over the observations."""
        topology = CSR.from_positions(positions, self.matrix_shape)
        total = self.weight_values.detach().new_zeros(positions.numel())
        for indices, dy in self.observations:
            total += embedding_gradient(indices, dy, topology.crow, topology.col)
        return total

    def _noted(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """What was looked up and its gradient, without padding, which has none."""
        if self.padding_idx is None:
            return x, dy
        real = x != self.padding_idx
        return x[real], dy[real]

    def _prepare_kernels(self, crow: Tensor, col: Tensor) -> Indices:
        validate(crow, col, self.matrix_shape, "weight")
        return crow, col


def unsuited(embedding: nn.Embedding) -> str:
    """Why an embedding has no sparse form; empty where it has."""
    if embedding.max_norm is not None:
        return f"max_norm={embedding.max_norm} rescales its entries at every lookup"
    if embedding.scale_grad_by_freq:
        return "its gradients are scaled by how often an entry is looked up"
    if embedding.sparse:
        return "it gives torch.sparse gradients of whole entries; build it with sparse=False"
    return ""
