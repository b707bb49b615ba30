"""Weights for a mask, and the mask itself, by alternating directions: one factorisation for all rows, and the exact optimum.

The weights are held twice: ``V`` fits the dense layer, ``Z`` obeys the mask, and a scaled dual ``U`` pulls them together. Both
steps are closed forms: a product with ``inverse(H + rho I)``, the same for all rows, and a projection. For a mask that stays,
this converges to the least-squares optimum whatever ``rho``; as long as the mask may still change, each projection chooses it
anew.

All of it happens in units where every input has norm one, ``H / (n n^T)`` and ``W n`` with ``n_j = sqrt(H_jj)``, in which the
magnitude of a weight is its Wanda score.

V. Boza, Fast and effective weight update for pruned large language models, TMLR 2024, arXiv 2401.02938;
X. Meng et al., ALPS, NeurIPS 2024, arXiv 2406.07831.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from openwork.grid import top_k
from openwork.reconstruction.hessian import damped

Project = Callable[[Tensor], Tensor]
"""``scores [out, in] -> mask [out, in]``: the legal mask of the highest scores."""


class Normalized:
    """``H`` in units where every input has norm one, and what is inverted of it; shared by layers that read the same tensor.

    Args:
        gram: ``H [in, in]``.
        damping: relative to the mean of the diagonal of ``H``.
    """

    def __init__(self, gram: Tensor, damping: float = 0.01) -> None:
        h = damped(gram, damping)
        self.norms = h.diagonal().sqrt()
        """``n [in]``."""
        self.hessian = h / self.norms / self.norms[:, None]
        """``H / (n n^T)``, ``[in, in]``, with ones on the diagonal."""
        self._inverses: dict[float, Tensor] = {}

    def inverse(self, rho: float) -> Tensor:
        """``inverse(H / (n n^T) + rho I)``, from one factorisation for this ``rho``."""
        if rho not in self._inverses:
            shifted = self.hessian + rho * torch.eye(
                len(self.norms), dtype=self.norms.dtype, device=self.norms.device
            )
            self._inverses = {rho: torch.cholesky_inverse(torch.linalg.cholesky(shifted))}
        return self._inverses[rho]

    def solve(self, right: Tensor, rho: float) -> Tensor:
        """``right @ inverse(H / (n n^T) + rho I)`` by way of the eigenvectors, which are the same for every ``rho``."""
        values, vectors = self._eigen
        return ((right @ vectors) / (values + rho)) @ vectors.T

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.hessian)
        return values, vectors


def admm(
    weight: Tensor,
    normalized: Normalized,
    mask: Tensor | None = None,
    *,
    choose: Project | None = None,
    steps: int = 20,
    gradual: int = 15,
    rho: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Alternating directions with a constant ``rho``, for a mask that is given or one that is chosen gradually.

    Args:
        weight: ``W [out, in]``, dense.
        normalized: of the layer's inputs.
        mask: the mask to find weights for; or, with ``choose``, the connections to choose among (all by default).
        choose: the final legal mask of scores. In step ``t`` of the first ``gradual`` ones, a fraction
            ``1 - (1 - t / gradual)^3`` of what it would prune of ``|V + U|`` is pruned, lowest scores first.
        steps: 20 come within a tenth of a percent of the optimum.
        gradual: steps in which the mask still changes; at most ``steps``.
        rho: changes how fast the limit is reached, not the limit.

    Returns:
        Weights, exactly zero outside the mask, and the mask.
    """
    dense = weight.to(normalized.hessian.dtype) * normalized.norms
    among = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    pulled = dense @ normalized.hessian
    inverse = normalized.inverse(rho)
    v, u = dense, torch.zeros_like(dense)
    now = among
    for step in range(1, steps + 1):
        if choose is not None and step <= gradual:
            now = _ramped((v + u).abs(), choose, among, 1.0 - (1.0 - step / gradual) ** 3)
        z = (v + u).masked_fill(~(now & among), 0)
        u = u + v - z
        v = (pulled + rho * (z - u)) @ inverse
    found = (v + u).masked_fill(~(now & among), 0) / normalized.norms
    return found.to(weight.dtype), now


def alps(
    weight: Tensor,
    normalized: Normalized,
    choose: Project,
    *,
    mask: Tensor | None = None,
    steps: int = 300,
    every: int = 3,
    rho: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Alternating directions that choose the mask: ``rho`` rises as long as the mask changes, and it ends when that is stable.

    Every ``every`` steps ``rho`` is multiplied by 1.3, 1.2 or 1.1 if more than a tenth, more than half a percent, or any of the
    kept connections have changed. Where none changed at the first looks, ``rho`` was too large to begin with: it is divided by
    five and all begins again.

    Args:
        weight: ``W [out, in]``, dense.
        normalized: of the layer's inputs.
        choose: the legal mask of scores.
        mask: the connections to choose among; all by default.
        steps: at most, restarts included.
        every: steps between two looks.
        rho: to begin with.

    Returns:
        Weights, exactly zero outside the mask, and the mask. They are near the optimum for it; conjugate gradients do the rest.
    """
    dense = weight.to(normalized.hessian.dtype) * normalized.norms
    among = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    pulled = dense @ normalized.hessian
    first = _chosen(dense.abs(), choose, among)
    v, u, now, seen, age = dense, torch.zeros_like(dense), first, first, 0
    for _ in range(steps):
        now = _chosen((v + u).abs(), choose, among)
        z = (v + u).masked_fill(~(now & among), 0)
        u = u + v - z
        v = normalized.solve(pulled + rho * (z - u), rho)
        age += 1
        if age % every:
            continue
        changed = int((now != seen).sum()) / 2 / max(int(now.sum()), 1)
        seen = now
        if changed > 0.0:
            factor = 1.3 if changed > 0.1 else 1.2 if changed > 0.005 else 1.1
            u, rho = u / factor, rho * factor  # the dual that is not scaled stays as it is
        elif age <= 2 * every and rho > 1e-4:
            v, u, seen, age, rho = dense, torch.zeros_like(dense), first, 0, rho / 5
        else:
            break
    found = (v + u).masked_fill(~(now & among), 0) / normalized.norms
    return found.to(weight.dtype), now


def _chosen(scores: Tensor, choose: Project, among: Tensor) -> Tensor:
    return choose(scores.masked_fill(~among, -torch.inf))


def _ramped(scores: Tensor, choose: Project, among: Tensor, fraction: float) -> Tensor:
    """A mask on the way: of what the final one would drop, only the lowest ``fraction``."""
    final = _chosen(scores, choose, among)
    dropped = among & ~final
    size = int(dropped.sum())
    reprieved = size - round(fraction * size)
    candidates = scores.masked_fill(~dropped, -torch.inf)
    return final | top_k(candidates.flatten(), reprieved).view_as(final)
