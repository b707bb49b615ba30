"""Random sparse matrices of awkward shapes, and the dense matrix they stand for."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from openwork.kernels.index import Prepared, prepare

SIZES = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 129, 200]))
BATCHES = st.one_of(st.integers(0, 20), st.sampled_from([31, 32, 33, 63, 64, 65, 130, 200]))
SPARSITIES = st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 1.0])


def random_matrix(rows: int, columns: int, sparsity: float, seed: int) -> tuple[Prepared, Tensor, Tensor]:
    """(topology, values [kept], dense [rows, columns])."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) >= sparsity
    if rows > 2 and seed % 3 == 0:
        mask[seed % rows] = False  # an empty row
    dense = torch.randn(rows, columns, generator=generator) * mask
    return of_mask(mask), dense[mask], dense


def of_mask(mask: Tensor) -> Prepared:
    crow = torch.zeros(mask.shape[0] + 1, dtype=torch.int32)
    crow[1:] = mask.sum(1).cumsum(0)
    return prepare(crow, mask.nonzero()[:, 1].to(torch.int32), (mask.shape[0], mask.shape[1]))
