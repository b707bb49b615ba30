"""The best weights for a given mask, exactly: the optimum that every other solver is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.reconstruction.hessian import damped

TOGETHER = 64 * 1024 * 1024
"""Entries of the systems that are solved in one batch."""


def least_squares(weight: Tensor, gram: Tensor, mask: Tensor, damping: float = 0.01) -> Tensor:
    """Minimise ``tr(D H D^T)`` over the weights that are kept.

    For a row with the kept inputs ``S``, ``w_S = inverse(H[S, S]) (H w)[S]``. Rows with the same mask share a factorisation, so
    a mask that drops whole inputs costs one; an unstructured mask costs ``out * kept^3``: for small layers, structured masks,
    and tests. Where ``H[S, S]`` has no inverse the solution of least norm is taken.

    Args:
        weight: ``W [out, in]``, dense.
        gram: ``H [in, in]``.
        mask: boolean ``[out, in]``, True = kept.
        damping: relative to the mean of the diagonal of ``H``; the same for all solvers that are compared. 0 is allowed.

    Returns:
        ``[out, in]``, exactly zero where the mask is False; where a row keeps all its inputs, the row itself.
    """
    h = damped(gram, damping)
    dense = weight.to(h.dtype)
    wanted = dense @ h
    result = torch.zeros_like(dense)
    masks, row_of = mask.unique(dim=0, return_inverse=True)
    counts = masks.sum(1)
    for count in counts.unique().tolist():
        if count in (0, mask.shape[1]):
            continue
        chosen = (counts == count).nonzero().flatten()
        for some in chosen.split(max(1, TOGETHER // count**2)):
            kept = masks[some].nonzero()[:, 1].view(len(some), count)
            systems = h[kept[:, :, None], kept[:, None, :]]
            factors = torch.linalg.cholesky_ex(systems)
            for i, one in enumerate(some.tolist()):
                rows = (row_of == one).nonzero().flatten()
                right = wanted[rows][:, kept[i]].T
                if damping and not int(factors.info[i]):
                    found = torch.cholesky_solve(right, factors.L[i])
                else:
                    found = torch.linalg.lstsq(systems[i], right, driver="gelsd").solution
                result[rows[:, None], kept[i]] = found.T
    whole = mask.all(1)
    result[whole] = dense[whole]
    return result.to(weight.dtype)
