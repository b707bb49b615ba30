"""The average-parameter law: closed forms of the plan, and coefficients that are found again."""

import math

import pytest
import torch

from openwork import AverageLaw, attach, fit_average_law, pretraining
from openwork.schedules import Polynomial
from tests.train.runs import net

LAW = AverageLaw(floor=1.7, size=400.0, size_power=0.34, data=410.0, data_power=0.28)


@pytest.mark.parametrize(
    ("sparsity", "begin", "until", "average"),
    [(0.5, 0.25 / 1.55, 1.05 / 1.55, 1 / 1.55), (0.8, 1 / 11, 6 / 11, 4 / 11), (0.0, 0.25, 0.75, 1.0)],
)
def test_the_plan_in_closed_form(sparsity, begin, until, average):
    run = pretraining(3e8, 1e20, sparsity)
    assert (run.begin, run.until) == pytest.approx((begin, until))
    assert run.average == pytest.approx(average * 3e8)
    assert 6 * run.average * run.tokens == pytest.approx(1e20)
    assert run.final == pytest.approx((1 - sparsity) * 3e8)


def test_the_percentages_of_the_paper():
    half, most = pretraining(1.0, 1.0, 0.5), pretraining(1.0, 1.0, 0.8)
    assert (round(half.begin, 4), round(half.until, 4), round(half.average, 5)) == (0.1613, 0.6774, 0.64516)
    assert (round(most.begin, 4), round(most.until, 4), round(most.average, 6)) == (0.0909, 0.5455, 0.363636)


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95])
@pytest.mark.parametrize("window", [(0.25, 0.75), (0.0, 1.0), (0.4, 0.4), (0.1, 0.6)])
def test_the_average_and_the_compute_are_those_of_the_run_it_describes(sparsity, window):
    run, fine = pretraining(1000.0, 6e6, sparsity, window), 200_000
    cubic = Polynomial(start=0.0, stop=sparsity, begin=run.begin, until=run.until)
    active = torch.tensor(
        [1000.0 * (1 - cubic.at((i + 0.5) / fine)) for i in range(fine)], dtype=torch.float64
    )
    assert float(active.mean()) == pytest.approx(run.average, rel=1e-4)
    spent = active.cumsum(0) / active.sum()
    if window[0]:
        assert float(spent[round(run.begin * fine) - 1]) == pytest.approx(window[0], abs=1e-4)
    assert float(spent[round(run.until * fine) - 1]) == pytest.approx(window[1], abs=1e-4)


def test_a_window_of_steps_is_another_one():
    cubic = Polynomial(start=0.0, stop=0.8, begin=0.25, until=0.75)
    mean = sum(cubic.at((i + 0.5) / 10_000) for i in range(10_000)) / 10_000
    assert mean == pytest.approx(0.625 * 0.8, rel=1e-4)
    assert 1 - pretraining(1.0, 1.0, 0.8).average > mean


def test_the_method_prunes_as_planned():
    run, model = pretraining(977.0, 1e9, 0.8), net((20, 40, 10))
    method = run.gmp(steps=1100, every=1)
    sparsifier, active = attach(model, None, method), []
    for _ in range(1100):
        active.append(sparsifier.kept)
        sparsifier.step()
    size = sparsifier.plan.numel
    assert sum(active) / len(active) / size == pytest.approx(run.average / run.parameters, abs=2e-3)
    assert sparsifier.kept == round(0.2 * size)


def runs(noise=0.0):
    """Dense and sparse runs of several sizes and costs, as the law has it."""
    g = torch.Generator().manual_seed(2)
    planned = [
        pretraining(n, c, s)
        for n in (1e7, 4e7, 2e8, 9e8)
        for c in (1e17, 2e18, 5e19)
        for s in (0.0, 0.4, 0.8)
    ]
    wobble = torch.randn(len(planned), generator=g, dtype=torch.float64) * noise
    return planned, [LAW.of(run) * math.exp(w) for run, w in zip(planned, wobble.tolist(), strict=True)]


def test_the_coefficients_are_found_again():
    planned, losses = runs()
    found = fit_average_law([r.average for r in planned], [r.tokens for r in planned], losses)
    assert found.floor == pytest.approx(LAW.floor, rel=1e-3)
    assert (found.size_power, found.data_power) == pytest.approx((0.34, 0.28), rel=1e-3)
    assert (found.size, found.data) == pytest.approx((LAW.size, LAW.data), rel=2e-2)


def test_one_law_holds_for_dense_and_sparse_runs_and_the_final_size_leaves_an_offset():
    planned, losses = runs(noise=1e-3)
    tokens = [r.tokens for r in planned]

    def errors(sizes):
        law = fit_average_law(sizes, tokens, losses)
        return [
            abs(math.log(law.loss(n, d) / loss)) for n, d, loss in zip(sizes, tokens, losses, strict=True)
        ]

    by_average, by_final = errors([r.average for r in planned]), errors([r.final for r in planned])
    assert sum(by_average) / len(planned) < 2e-3
    assert sum(by_final) > 5 * sum(by_average)


def test_an_outlier_does_not_bend_the_law():
    planned, losses = runs()
    losses[7] *= 1.5
    found = fit_average_law([r.average for r in planned], [r.tokens for r in planned], losses)
    assert found.floor == pytest.approx(LAW.floor, rel=1e-2)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="window"):
        pretraining(1e6, 1e12, 0.5, window=(0.7, 0.2))
    with pytest.raises(ValueError, match="sparsity"):
        pretraining(1e6, 1e12, 1.0)
    with pytest.raises(ValueError, match="positive"):
        pretraining(0, 1e12, 0.5)
    with pytest.raises(ValueError, match="at least five runs"):
        fit_average_law([1.0] * 4, [1.0] * 4, [1.0] * 4)
    with pytest.raises(ValueError, match="positive, finite"):
        fit_average_law([1.0] * 5, [1.0] * 5, [math.nan] * 5)
