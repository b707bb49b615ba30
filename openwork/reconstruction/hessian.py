"""``H = X^T X``, made safe to factorise: dead inputs, damping, and what a change of weights costs."""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 4096
"""Up to so many inputs, factorisations are float64; wider ones float32, where float64 would take minutes."""


def layer_error(change: Tensor, gram: Tensor) -> Tensor:
    """``tr(D H D^T)``: the squared error, summed over tokens and outputs, that a change of the weights makes.

    Args:
        change: ``D [out, in]``.
        gram: ``H [in, in]``.

    Returns:
        A float64 scalar.
    """
    change = change.to(gram.dtype)
    return ((change @ gram).double() * change.double()).sum().clamp(min=0)


def damped(gram: Tensor, damping: float) -> Tensor:
    """``H + damping * mean(diag H) * I``; where that leaves a zero on the diagonal (an input that was always zero, and no
    damping), it is 1.

    Args:
        gram: ``[in, in]``.
        damping: relative to the mean of the diagonal; 0.01 is customary.

    Returns:
        A copy, float64 up to :data:`SMALL` inputs and float32 beyond.
    """
    h = gram.to(torch.float64 if gram.shape[0] <= SMALL else torch.float32, copy=True)
    diagonal = h.diagonal()
    diagonal += damping * diagonal.mean()
    diagonal[diagonal == 0] = 1.0
    return h


def cholesky(gram: Tensor, damping: float) -> Tensor:
    """The lower Cholesky factor of :func:`damped` ``H``. Where that is not positive definite in floating point, the damping
    is raised tenfold until it is.

    Raises:
        ValueError: ``H`` is not finite, or no damping up to 10 helps.
    """
    if not bool(gram.isfinite().all()):
        raise ValueError("X^T X is not finite: the inputs of the layer overflow or hold NaN")
    while True:
        found = torch.linalg.cholesky_ex(damped(gram, damping))
        if not int(found.info):
            factor: Tensor = found.L
            return factor
        if damping >= 10.0:
            raise ValueError(
                f"X^T X cannot be factorised even with a damping of {damping:g}: it is not symmetric"
            )
        damping = max(damping * 10.0, 1e-6)


def inverse_factor(gram: Tensor, damping: float = 0.01) -> Tensor:
    """The upper triangular ``U`` with ``U^T U = inverse(H)``, of :func:`damped` ``H``.

    Row ``U[j, j:]`` is the first row of ``inverse(H[j:, j:])`` divided by the root of its first entry: one factorisation holds
    the inverses of all trailing blocks of ``H``, which is what a sweep over the columns of a layer needs one by one.
    """
    # With J reversing the order of the inputs and J H J = L L^T, H = V V^T for the upper V = J L J, so U = inverse(V): one
    # triangular inverse where the textbook factorises twice.
    reversed_factor = cholesky(gram.flip(0, 1), damping)
    identity = torch.eye(gram.shape[0], dtype=reversed_factor.dtype, device=gram.device)
    inverse: Tensor = torch.linalg.solve_triangular(reversed_factor, identity, upper=False)
    return inverse.flip(0, 1)
