"""Weights for a given mask by conjugate gradients: no factorisation, all rows at once."""

from __future__ import annotations

import torch
from torch import Tensor

from openwork.reconstruction.hessian import damped


def conjugate_gradients(
    weight: Tensor,
    gram: Tensor,
    mask: Tensor,
    start: Tensor | None = None,
    *,
    damping: float = 0.01,
    steps: int = 100,
    tolerance: float = 1e-6,
) -> Tensor:
    """Minimise ``tr(D H D^T)`` over the weights that are kept, each row by conjugate gradients with the residual masked.

    The diagonal of ``H`` preconditions, which makes the result independent of the scales of the inputs. The error of no row ever
    rises from one step to the next.

    Args:
        weight: ``W [out, in]``, dense.
        gram: ``H [in, in]``.
        mask: boolean ``[out, in]``, True = kept.
        start: where to begin, ``[out, in]``; ``weight`` by default. Only its kept weights count.
        damping: relative to the mean of the diagonal of ``H``.
        steps: at most.
        tolerance: a row is done when its residual is this small relative to what it was for weights of zero.

    Returns:
        ``[out, in]``, exactly zero where the mask is False.
    """
    h = damped(gram, damping)
    dense = weight.to(h.dtype)
    inverse_diagonal = 1.0 / h.diagonal()
    wanted = (dense @ h).masked_fill_(~mask, 0)
    found = (dense if start is None else start.to(h.dtype)).masked_fill(~mask, 0)
    residual = wanted - (found @ h).masked_fill_(~mask, 0)
    done = tolerance * (wanted.square() * inverse_diagonal).sum(1).sqrt()
    scaled = residual * inverse_diagonal
    direction = scaled.clone()
    size = (residual * scaled).sum(1)
    for _ in range(steps):
        going = size.sqrt() > done
        if not bool(going.any()):
            break
        curved = (direction @ h).masked_fill_(~mask, 0)
        curvature = (direction * curved).sum(1)
        length = torch.where(going & (curvature > 0), size / curvature, 0)[:, None]
        found += length * direction
        residual -= length * curved
        scaled = residual * inverse_diagonal
        now = (residual * scaled).sum(1)
        direction = scaled + torch.where(size > 0, now / size, 0)[:, None] * direction
        size = now
    return found.masked_fill_(~mask, 0).to(weight.dtype)
