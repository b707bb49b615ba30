"""SSVI: the scores of Gaussian weights, the divergence, noise that a mask gates, and a better calibrated network."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from openwork import SSVI, RigL, attach
from openwork.testing import check_method
from openwork.train.ssvi import certainty
from tests.train.runs import Run, net

METHOD = SSVI(sparsity=0.7, steps=20, every=4, deviation=0.05, prior=0.1)


def test_conformance():
    check_method(SSVI, deviation=0.02)


def test_the_mean_size_is_that_of_samples():
    g = torch.Generator().manual_seed(0)
    mu = torch.tensor([-0.3, 0.0, 0.02, 1.0], dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.5, 0.3, 0.01], dtype=torch.float64)
    drawn = (mu + sigma * torch.randn(400_000, 4, generator=g, dtype=torch.float64)).abs()
    assert certainty(mu, sigma, "mean_abs").tolist() == pytest.approx(drawn.mean(0).tolist(), rel=0.01)
    expected = (drawn.mean(0) / drawn.std(0)).tolist()
    assert certainty(mu, sigma, "signal_abs").tolist() == pytest.approx(expected, rel=0.02)
    assert certainty(mu, sigma, "signal").tolist() == pytest.approx((mu.abs() / sigma).tolist())


def test_without_deviation_the_size_is_the_magnitude():
    mu = torch.linspace(-1, 1, 7, dtype=torch.float64)
    assert torch.allclose(certainty(mu, torch.full_like(mu, 1e-9), "mean_abs"), mu.abs(), atol=1e-8)


def test_the_pull_of_the_divergence_is_its_gradient():
    run = Run(dataclasses.replace(METHOD, divergence=3.0, samples=7), lr=0.0)
    run.backward()
    c = run.sparsifier.connections["0.weight"]
    loss_alone = c.weight.parameter.grad.clone()
    pull = run.sparsifier.state["pull 0.weight"].clone()
    rho = run.sparsifier.state["rho 0.weight"].clone().requires_grad_()
    mu = c.weight.parameter.detach().clone().requires_grad_()
    posterior = torch.distributions.Normal(mu, nn.functional.softplus(rho))
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 0.1))
    (3.0 / 7 * min(1, 2 / 20) * divergence[c.mask].sum()).backward()
    for group in run.optimizer.param_groups:
        group["lr"] = 1e-3
    run.optimizer.step()
    assert torch.allclose(c.weight.parameter.grad - loss_alone, mu.grad)
    moved = run.sparsifier.state["rho 0.weight"] - rho.detach()
    assert torch.allclose(moved[c.mask], -1e-3 * (pull + rho.grad)[c.mask])
    assert bool((moved[~c.mask] == 0).all())


def test_at_the_prior_nothing_pulls():
    at_prior = dataclasses.replace(METHOD, deviation=0.1, divergence=1.0, samples=1)
    run = Run(at_prior)
    for c in run.sparsifier.connections.values():
        c.weight.parameter.grad = torch.zeros_like(c.weight.parameter)
        with torch.no_grad():
            c.weight.parameter.zero_()
    before = run.sparsifier.state["rho 0.weight"].clone()
    run.sparsifier.method.before_step(run.sparsifier, 20)
    assert torch.allclose(run.sparsifier.state["rho 0.weight"], before, atol=1e-12)


def outputs(run, count=1, x=None):
    x = torch.ones(count, 13, dtype=torch.float64) if x is None else x
    with torch.no_grad():
        return run.model[0](x)


def test_noise_has_the_variance_of_the_active_weights_and_rests_in_evaluation():
    run = Run(METHOD)
    c = run.sparsifier.connections["0.weight"]
    drawn = outputs(run, 20_000)
    expected = (c.mask.sum(1) * 0.05**2).double()
    assert drawn.var(0).tolist() == pytest.approx(expected.tolist(), rel=0.08, abs=1e-6)
    run.model.eval()
    assert torch.equal(
        outputs(run), nn.functional.linear(torch.ones(1, 13).double(), run.model[0].weight, run.model[0].bias)
    )


def test_the_gradient_of_the_deviation():
    run = Run(METHOD)
    state = run.sparsifier.state
    x = torch.ones(5, 13, dtype=torch.float64)
    generator = run.sparsifier.generator.get_state()
    run.model[0](x).sum().backward()
    found, step = state["pull 0.weight"].clone(), 1e-4
    at = tuple(run.sparsifier.connections["0.weight"].mask.nonzero()[3])
    values = []
    for sign in (1, -1):
        state["rho 0.weight"][at] += sign * step
        run.sparsifier.generator.set_state(generator)
        values.append(float(outputs(run, x=x).sum()))
        state["rho 0.weight"][at] -= sign * step
    assert float(found[at]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


def test_new_connections_start_at_zero_with_the_mean_deviation():
    run = Run(dataclasses.replace(METHOD, divergence=1.0, samples=1)).step(3)
    c = run.sparsifier.connections["0.weight"]
    old = c.mask
    run.backward()
    run.optimizer.step()
    fresh = c.mask & ~old
    assert int(fresh.sum()) > 0
    assert bool((run.model[0].weight[fresh] == 0).all())
    rho = run.sparsifier.state["rho 0.weight"]
    assert len(rho[fresh].unique()) == 1
    assert float(rho[c.mask].min()) <= float(rho[fresh][0]) <= float(rho[c.mask].max())


def test_what_cannot_be():
    with pytest.raises(ValueError, match="choose mean"):
        SSVI(score="snr")
    with pytest.raises(ValueError, match="prior is positive"):
        SSVI(prior=0.0)
    with pytest.raises(ValueError, match="to_dense_"):
        Run(METHOD, net(), stored=True)


def calibration_error(probabilities, targets):
    confidence, guess = probabilities.max(-1)
    bins = (confidence * 10).long().clamp(max=9)
    gaps = [
        abs(
            float(
                (guess[bins == b] == targets[bins == b]).double().mean()
                - confidence[bins == b].double().mean()
            )
        )
        * float((bins == b).double().mean())
        for b in range(10)
        if bool((bins == b).any())
    ]
    return sum(gaps)


def learned(method, task, steps=400):
    from openwork.tasks.mlp import mlp
    from openwork.tasks.training import fit

    model = mlp([64, 96, 48, 10], seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = attach(model, optimizer, method)
    fit(model, task, optimizer=optimizer, steps=steps, seed=5)
    model.eval()
    x, y = task.validation.inputs, task.validation.targets
    with torch.no_grad():
        p = method.predict(sparsifier, model, x, 20) if isinstance(method, SSVI) else model(x).softmax(-1)
    loss = -float(p[torch.arange(len(y)), y].clamp(min=1e-12).log().mean())
    return {
        "accuracy": float((p.argmax(-1) == y).double().mean()),
        "nll": loss,
        "error": calibration_error(p, y),
    }


def test_it_is_better_calibrated_than_rigl_on_digits():
    pytest.importorskip("sklearn")
    from openwork.tasks import get

    task = get("digits")
    options = {"sparsity": 0.9, "steps": 400, "every": 20, "allocation": "uniform"}
    bayes = learned(SSVI(**options, deviation=0.1, prior=0.3, divergence=0.2, samples=len(task.train)), task)
    plain = learned(RigL(**options), task)
    assert bayes == pytest.approx(BAYES, abs=0.04)
    assert plain == pytest.approx(PLAIN, abs=0.04)
    assert math.isfinite(bayes["nll"])


BAYES = {"accuracy": 0.952, "nll": 0.190, "error": 0.037}
PLAIN = {"accuracy": 0.941, "nll": 0.279, "error": 0.043}
