"""A matrix as the product of two thin ones: ``W [out, in] ~ A [out, k] B [k, in]``.

Three answers to the question of what is kept:

- :func:`truncated`: the most of ``W`` itself (singular values);
- :func:`whitened`: the most of ``X W^T``, the outputs on calibration inputs (singular values of ``W R^T``, ``R^T R = X^T X``);
- :func:`mimicking`: the most of the *variance* of the outputs (eigenvectors of their covariance); their mean goes to the bias.

They agree where the inputs are orthonormal and centred. Only below ``out * in / (out + in)`` columns are parameters saved.

Functions of tensors, in float64 inside; nothing is changed in place.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from openwork.reconstruction.hessian import cholesky


class Factors(NamedTuple):
    """``A [out, k]`` and ``B [k, in]``, of the dtype of the weight; ``energy [min(out, in)]``: what each rank adds.

    ``energy`` is squared and sorted: its sum beyond ``k`` is the squared error that the factors make, in the measure of the
    solver.
    """

    left: Tensor
    right: Tensor
    energy: Tensor

    def product(self) -> Tensor:
        """``A B [out, in]``."""
        return self.left @ self.right


def break_even(rows: int, columns: int) -> int:
    """The largest rank at which two factors hold fewer numbers than the matrix."""
    return max(0, -(-rows * columns // (rows + columns)) - 1)


def truncated(weight: Tensor, rank: int) -> Factors:
    """Keep the ``rank`` largest singular values; each factor gets the root of them.

    ``||W - AB||_F^2`` is the sum of the other singular values squared (Eckart and Young): nothing of this rank is nearer.
    """
    _check(weight, rank)
    p, s, q = torch.linalg.svd(weight.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return Factors(
        (p[:, :rank] * root).to(weight.dtype), (root[:, None] * q[:rank]).to(weight.dtype), s.square()
    )


def nuclear_subgradient(matrix: Tensor) -> Tensor:
    """``U V^T`` over the singular values that are not zero: a subgradient of their sum, ``<U V^T, W> = ||W||_*``. Of several
    matrices ``[..., rows, columns]`` one each.
    """
    u, s, v = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    # what comes from float32 is known to its precision only
    there = s > s[..., :1] * max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps
    subgradient: Tensor = (u * there.unsqueeze(-2)) @ v
    return subgradient.to(matrix.dtype)


def whitened(weight: Tensor, gram: Tensor, rank: int, damping: float = 0.0) -> Factors:
    """Minimise ``||X (W - AB)^T||_F^2``: no product of this rank has outputs nearer on the calibration inputs.

    With ``H = R^T R`` and ``W R^T = P S Q^T``: ``A = P_k sqrt(S_k)``, ``B = sqrt(S_k) Q_k^T R^{-T}``.

    Args:
        weight: ``[out, in]``.
        gram: ``H = X^T X [in, in]``.
        rank: columns of ``A``.
        damping: added to the diagonal of ``H``, relative to its mean; raised where ``H`` is singular.

    Paper: Wang et al., SVD-LLM, ICLR 2025, arXiv 2403.07378; the residual form is LoRC's with weights.
    """
    _check(weight, rank)
    lower = cholesky(gram.double(), damping).double()  # H = L L^T, so R^T = L
    p, s, q = torch.linalg.svd(weight.double() @ lower, full_matrices=False)
    root = s[:rank].sqrt()
    right = torch.linalg.solve_triangular(lower, root[:, None] * q[:rank], upper=False, left=False)
    return Factors((p[:, :rank] * root).to(weight.dtype), right.to(weight.dtype), s.square())


def mimicking(weight: Tensor, covariance: Tensor, rank: int) -> Factors:
    """Project the outputs on the ``rank`` directions in which they vary most: ``A = U_k``, ``B = U_k^T W``.

    The squared error on the calibration inputs, with :func:`mimicking_bias`, is the sum of the other eigenvalues.

    Args:
        weight: ``[out, in]``.
        covariance: of the *inputs*, ``sum_t (x - mean)(x - mean)^T [in, in]``, so that energies are sums over tokens; that of the
            outputs is ``W C W^T``.
        rank: columns of ``A``.

    Paper: Kaushal, Vaidhya, Rish, LORD, 2023, arXiv 2309.14021 (atomic feature mimicking).
    """
    _check(weight, rank)
    w = weight.double()
    energy, vectors = torch.linalg.eigh(w @ covariance.double() @ w.T)
    left = vectors.flip(1)[:, :rank]
    return Factors(
        left.to(weight.dtype), (left.T @ w).to(weight.dtype), energy.flip(0).clamp(min=0)[: min(w.shape)]
    )


def mimicking_bias(weight: Tensor, bias: Tensor | None, left: Tensor, mean: Tensor) -> Tensor:
    """The bias that goes with :func:`mimicking`: ``U U^T b + (I - U U^T) ybar``, with ``ybar = W mean + b``.

    Args:
        weight: ``[out, in]`` before.
        bias: ``[out]`` before, or None.
        left: ``U [out, k]``.
        mean: of the inputs, ``[in]``.
    """
    u = left.double()
    b = torch.zeros(len(weight), dtype=torch.float64, device=weight.device) if bias is None else bias.double()
    output = weight.double() @ mean.double() + b
    return (output + u @ (u.T @ (b - output))).to(weight.dtype)


def _check(weight: Tensor, rank: int) -> None:
    if weight.dim() != 2:
        raise ValueError(f"only a matrix has two factors; got a weight {list(weight.shape)}")
    if not 0 <= rank <= min(weight.shape):
        raise ValueError(f"the rank of {list(weight.shape)} is between 0 and {min(weight.shape)}; got {rank}")
    if not bool(weight.isfinite().all()):
        raise ValueError("a matrix with NaN or infinity has no factors")


Form = Literal["channel", "spatial", "decoupled"]
"""How a convolution ``[out, in, kh, kw]`` is seen as a matrix, or as one for each of its filters."""

FORMS: tuple[Form, ...] = get_args(Form)


def as_matrix(weight: Tensor, form: Form = "channel") -> Tensor:
    """A weight as the matrix whose rank counts.

    ``channel``: ``[out, in * kh * kw]``, two factors are a ``kh x kw`` convolution to as many channels as the rank, then a
    ``1 x 1`` one. ``spatial``: ``[in * kh, out * kw]``, a ``kh x 1`` convolution, then a ``1 x kw`` one. ``decoupled``: ``out``
    matrices ``[in, kh * kw]`` of one rank, a ``1 x 1`` convolution to as many channels for each output, then ``kh x kw`` on these
    alone. A matrix stays itself.
    """
    if form == "channel" or weight.dim() == 2:
        return weight.flatten(1)
    if form == "decoupled":
        return weight.flatten(2)
    return weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)


def as_weight(matrix: Tensor, shape: tuple[int, ...], form: Form = "channel") -> Tensor:
    """The inverse of :func:`as_matrix`."""
    if form in ("channel", "decoupled") or len(shape) == 2:
        return matrix.reshape(shape)
    out, inputs, kh, kw = shape
    return matrix.reshape(inputs, kh, out, kw).permute(2, 0, 1, 3).contiguous()


def spectrum(singular: Tensor) -> Tensor:
    """Singular values ``[k]``, descending; of several matrices that share a rank, ``[n, k]``, the root of the sum of squares over
    them: what each component weighs in all.
    """
    return singular if singular.dim() == 1 else singular.square().sum(0).sqrt()


def energy_rank(singular: Tensor, energy: float) -> int:
    """The smallest rank that keeps a part ``energy`` of the sum of squared singular values (descending); at least 1."""
    squares = singular.double().square()
    if energy >= 1.0 or not bool(squares.any()):
        return max(1, int((squares > 0).sum()))
    kept = squares.cumsum(0) / squares.sum()
    return int((kept < energy).sum()) + 1


def value_rank(singular: Tensor, value: float) -> int:
    """How many singular values are larger than ``value``; at least 1."""
    return max(1, int((singular > value).sum()))


def lasso_slopes(left: Tensor, right: Tensor, hierarchical: bool = True) -> tuple[Tensor, Tensor]:
    """The gradient of a group lasso over the components of ``A B``, with respect to ``A [out, m]`` and ``B [m, in]``.

    The penalty is the sum over ``b`` of ``||A[:, b:]|| + ||B[b:]||``: later components are in more of its terms, so they go
    first. Without the hierarchy it is that of ``||A[:, b]|| + ||B[b]||``.
    """
    slopes = []
    for factor in (left, right.T):
        squares = factor.double().square().sum(0)
        if hierarchical:
            squares = squares.flip(0).cumsum(0).flip(0)
        inverse = (
            squares + EPSILON
        ).rsqrt()  # inside the root: at zero the gradient of a norm is not a number
        weight = inverse.cumsum(0) if hierarchical else inverse
        slopes.append((factor * weight).to(factor.dtype))
    return slopes[0], slopes[1].T


def importance(left: Tensor, right: Tensor, hierarchical: bool = True) -> Tensor:
    """``||A[:, b:]|| * ||B[b:]||`` of every component ``b``, which never rises; ``||A[:, b]|| * ||B[b]||`` without hierarchy."""
    squares = [factor.detach().double().square().sum(0) for factor in (left, right.T)]
    if hierarchical:
        squares = [s.flip(0).cumsum(0).flip(0) for s in squares]
    return (squares[0] * squares[1]).sqrt()


EPSILON = 1e-12
"""Added to squared norms before their root is taken."""
