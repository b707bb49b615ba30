"""Factors of a matrix, each against the optimum that it claims."""

import pytest
import torch

from openwork.factorization import break_even, mimicking, mimicking_bias, truncated, whitened
from tests.calibrate.problems import inputs


def problem(
    out: int = 17, features: int = 26, seed: int = 0, tokens: int = 120
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + 100)
    w, b = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((out, features), (out,)))
    return w, b, inputs(tokens, features, seed)


def covariance(x: torch.Tensor) -> torch.Tensor:
    apart = x - x.mean(0)
    return apart.T @ apart


@pytest.mark.parametrize("rank", [0, 1, 5, 17])
def test_truncation_discards_the_smallest_singular_values(rank: int) -> None:
    w, _, _ = problem()
    f = truncated(w, rank)
    assert f.left.shape == (17, rank)
    assert f.right.shape == (rank, 26)
    tail = torch.linalg.svdvals(w)[rank:].square().sum()
    assert float((w - f.product()).square().sum()) == pytest.approx(float(tail), rel=1e-9, abs=1e-18)
    assert float(f.energy[rank:].sum()) == pytest.approx(float(tail), rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("rank", [0, 1, 5, 17])
def test_whitening_is_optimal_for_the_outputs(rank: int) -> None:
    w, _, x = problem()
    f = whitened(w, x.T @ x, rank)
    error = float((x @ (w - f.product()).T).square().sum())
    best = float(
        torch.linalg.svdvals(x @ w.T)[rank:].square().sum()
    )  # Eckart and Young, of the outputs themselves
    assert error == pytest.approx(best, rel=1e-8, abs=1e-14)
    assert float(f.energy[rank:].sum()) == pytest.approx(best, rel=1e-8, abs=1e-14)
    assert error <= float((x @ (w - truncated(w, rank).product()).T).square().sum()) + 1e-9


@pytest.mark.parametrize(("out", "features"), [(17, 26), (26, 9)])
@pytest.mark.parametrize("rank", [0, 1, 4, 9])
def test_mimicking_errs_by_the_tail_of_the_eigenvalues(out: int, features: int, rank: int) -> None:
    w, b, x = problem(out, features)
    f = mimicking(w, covariance(x), rank)
    bias = mimicking_bias(w, b, f.left, x.mean(0))
    y = x @ w.T + b
    error = float((y - (x @ f.product().T + bias)).square().sum())
    eigenvalues = torch.linalg.eigvalsh(covariance(y)).flip(0)
    assert error == pytest.approx(float(eigenvalues[rank:].sum()), rel=1e-9, abs=1e-9)
    assert float(f.energy[rank:].sum()) == pytest.approx(error, rel=1e-8, abs=1e-9)


def test_whitening_equals_mimicking_on_centred_inputs() -> None:
    w, _, x = problem()
    x = x - x.mean(0)
    for rank in (2, 7):
        a, b = whitened(w, x.T @ x, rank), mimicking(w, covariance(x), rank)
        assert torch.allclose(a.product(), b.product(), atol=1e-8)


def test_all_agree_on_orthonormal_centred_inputs() -> None:
    w, _, x = problem()
    x = torch.linalg.qr(x - x.mean(0)).Q
    found = [f.product() for f in (truncated(w, 6), whitened(w, x.T @ x, 6), mimicking(w, covariance(x), 6))]
    assert torch.allclose(found[0], found[1], atol=1e-9)
    assert torch.allclose(found[0], found[2], atol=1e-9)


def test_correlated_inputs_favour_the_solvers_that_look_at_them() -> None:
    w, _, x = problem(32, 48, tokens=400)
    x = x - x.mean(0)
    error = [
        float((x @ (w - f.product()).T).square().sum())
        for f in (mimicking(w, covariance(x), 8), truncated(w, 8))
    ]
    assert error[0] < 0.9 * error[1]


def test_singular_statistics_are_damped_instead_of_failing() -> None:
    w, _, x = problem(tokens=9)
    f = whitened(w, x.T @ x, 12)
    assert bool(f.left.isfinite().all())
    assert bool(f.right.isfinite().all())
    assert float((x @ (w - f.product()).T).square().sum()) < 1e-2 * float((x @ w.T).square().sum())


def test_the_break_even_rank_is_the_last_that_saves() -> None:
    for out, features in ((17, 26), (64, 64), (1, 9), (30, 6)):
        k = break_even(out, features)
        assert k * (out + features) < out * features <= (k + 1) * (out + features)


def test_impossible_ranks_are_refused() -> None:
    w, _, _ = problem()
    with pytest.raises(ValueError, match="between 0 and 17; got 18"):
        truncated(w, 18)
    with pytest.raises(ValueError, match="only a matrix"):
        truncated(w[None], 1)
