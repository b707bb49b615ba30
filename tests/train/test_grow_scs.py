"""Structured continuous sparsification draws units, learns which to draw, and ends with whole units."""

import math

import pytest
import torch
from torch import nn

from openwork import GMP, Global, GrowSCS, StaticRandom, attach
from openwork.tasks.digits import digits
from openwork.tasks.mlp import mlp
from openwork.tasks.training import fit
from openwork.testing import check_method
from tests.train.runs import Run, net

METHOD = GrowSCS(steps=40, exclude=("4.*",))


@pytest.mark.parametrize(
    "options", [{}, {"pattern": "unstructured"}, {"allocation": "uniform", "pattern": "block 1x2"}]
)
def test_conformance(options):
    check_method(GrowSCS, **options)


def units(run, name):
    """What the sparsifier remembers of the units of a layer: logit, steps at work, drawn or not."""
    return [run.sparsifier.state[f"{what} {name}"][0] for what in ("logit", "work", "drawn")]


def likely(run, name):
    logit, work, _ = units(run, name)
    return torch.sigmoid((100.0 ** (work / 30)) * logit)


def test_the_seed():
    run = Run(METHOD, net((13, 40, 16, 5)))
    for name, size in (("0.weight", 40), ("2.weight", 16)):
        logit, work, drawn = units(run, name)
        assert int((logit == 2.0).sum()) == size // 4
        assert int((logit == -2.0).sum()) == size - size // 4
        assert 0 < int(drawn.sum()) < size
        assert not bool(work.any())
    drawn = units(run, "0.weight")[2]
    assert torch.equal(units(run.step(), "0.weight")[1], drawn.long())


def test_the_network_sees_the_units_that_were_drawn():
    run = Run(METHOD)
    for _ in range(12):
        run.step()
        for name in ("0.weight", "2.weight"):
            c, (_, _, drawn) = run.sparsifier.connections[name], units(run, name)
            gates = torch.where(drawn, likely(run, name), 0)
            torch.testing.assert_close(run.weights[name], gates[:, None] * c.latent, rtol=1e-6, atol=0)
            assert 0 < int(drawn.sum()) < len(drawn)


def test_units_are_drawn_as_often_as_they_should_be():
    """Logits that do not move: in the first step p = sigmoid(s), and old units are drawn nearly always."""
    run = Run(GrowSCS(steps=400, rate=0.0, until=1.0, exclude=("4.*",)), net((3, 2000, 4, 5)))
    logit, _, drawn = units(run, "0.weight")
    for sign, p in ((1, 0.881), (-1, 0.119)):
        assert float(drawn[logit == 2 * sign].double().mean()) == pytest.approx(p, abs=0.05)
    run.step(120)
    logit, work, drawn = units(run, "0.weight")
    heat = 100.0 ** (work[drawn & (logit > 0)] / 400)
    assert float(heat.mean()) > 3.0  # those at work have hardened
    assert float(drawn[logit > 0].double().mean()) > 0.95


def test_both_gradients():
    """Of the logits of drawn units, and of their weights, against autograd through the gates; others feel the budget alone."""
    run = Run(METHOD, lr=0.05, momentum=0.0).step(3)
    name = "0.weight"
    c = run.sparsifier.connections[name]
    logit, _, drawn = units(run, name)
    excess = run.sparsifier.method.expected_size(run.sparsifier) - 0.5
    run.backward()
    p, theta = likely(run, name).requires_grad_(), c.latent.clone().requires_grad_()
    seen = (drawn * p)[:, None] * theta
    loss = (seen * c.weight.parameter.grad).sum() + excess * p.sum()
    dp, dtheta = torch.autograd.grad(loss, (p, theta))
    ds = (dp * p * (1 - p)).detach()
    torch.testing.assert_close(dp[~drawn], torch.full_like(dp[~drawn], excess))
    assert bool((dtheta[~drawn] == 0).all())
    run.optimizer.step()
    torch.testing.assert_close(units(run, name)[0], logit - ds)
    torch.testing.assert_close(c.latent, theta.detach() - 0.05 * dtheta)


def test_the_budget_grows_a_small_network_and_prunes_a_large_one():
    for seed_size in (0.1, 0.9):
        run = Run(
            GrowSCS(steps=60, seed_size=seed_size, pressure=20.0, exclude=("4.*",)), net((13, 60, 40, 5))
        )
        method = run.sparsifier.method
        sizes = []
        for _ in range(44):
            sizes.append(method.expected_size(run.sparsifier))
            run.step()
        assert abs(sizes[0] - 0.5) > 0.25
        assert (sizes[0] > 0.5) == (seed_size > 0.5)
        assert sizes[-1] == pytest.approx(0.5, abs=0.05)


def test_gates_harden_to_zero_and_one():
    """With time and use p goes to 1[s > 0] for the units at work."""
    logit = torch.tensor([0.3, -0.3, 2.0])
    heats = [100.0 ** (n / 30) for n in (0, 15, 30)]
    apart = [float(((h * logit).sigmoid() - (logit > 0).double()).abs().max()) for h in heats]
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 1e-12
    run = Run(METHOD).step(20)
    for name in ("0.weight", "2.weight"):
        _, work, _ = units(run, name)
        heat = run.sparsifier.method._heat(
            run.sparsifier, next(r for r in run.sparsifier.plan if r.name == name)
        )
        assert heat[0].tolist() == pytest.approx([math.exp(math.log(100) * n / 30) for n in work.tolist()])


def test_the_end_keeps_the_highest_logits_as_they_were_seen():
    run = Run(METHOD).step(29)
    run.backward()
    run.optimizer.step()  # the 30th: gates become hard
    kept = 0
    worst, best = math.inf, -math.inf
    for name in ("0.weight", "2.weight"):
        logit, _, _ = units(run, name)
        c, mask = run.sparsifier.connections[name], run.sparsifier.masks[name]
        assert torch.equal(mask.any(1), mask.all(1))  # whole units
        stays = mask.all(1)
        assert torch.equal(run.weights[name] != 0, mask)
        torch.testing.assert_close(run.weights[name][stays], c.latent[stays])
        worst, best = min(worst, float(logit[stays].min())), max(best, float(logit[~stays].max()))
        kept += int(mask.sum())
    assert worst > best  # one ranking for all layers
    total = round(0.5 * (13 * 29 + 29 * 17))
    assert total - 13 - 29 < kept <= total  # the cost is never above the target
    masks = run.sparsifier.masks
    run.step(10)
    assert all(torch.equal(mask, run.sparsifier.masks[name]) for name, mask in masks.items())


def test_a_floor_keeps_layers_alive():
    run = Run(GrowSCS(steps=20, sparsity=0.9, allocation=Global(floor=0.04), exclude=("4.*",))).step(20)
    assert min(int(mask.any(1).sum()) for mask in run.sparsifier.masks.values()) >= 1


def test_resting_units_can_be_removed():
    """In a network without biases on hidden units, what is left without the units that rest computes the same."""
    model = nn.Sequential(nn.Linear(13, 29, bias=False), nn.ReLU(), nn.Linear(29, 5)).double()
    run = Run(GrowSCS(steps=20, exclude=("2.*",)), model).step(20)
    alive = run.sparsifier.masks["0.weight"].any(1)
    assert 0 < int(alive.sum()) < 29
    x = torch.randn(6, 13, dtype=torch.float64)
    small = torch.relu(x @ model[0].weight[alive].T) @ model[2].weight[:, alive].T + model[2].bias
    torch.testing.assert_close(small, model(x))


def test_what_cannot_be():
    for wrong in ({"hardness": 0.5}, {"rate": -1.0}, {"seed_size": 1.5}, {"until": 2.0}, {"logit": -1.0}):
        with pytest.raises(ValueError, match="got"):
            GrowSCS(**wrong)


def test_a_fifth_of_the_units_on_digits():
    """The figures of this run: no worse than units pruned from a dense network or drawn at random, and small while it grew."""
    task, found = digits(), {}
    for method in (
        GrowSCS(sparsity=0.8, steps=240, exclude=("fc3.*",), allocation="uniform"),
        GMP(sparsity=0.8, steps=240, every=12, exclude=("fc3.*",), pattern="groups 0"),
        StaticRandom(sparsity=0.8, exclude=("fc3.*",), pattern="groups 0"),
    ):
        model = mlp([64, 96, 48, 10], seed=5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier = attach(model, optimizer, method)
        found[method.name] = fit(model, task, optimizer=optimizer, steps=240, seed=5).validation.accuracy
        if method.name == "grow_scs":
            assert sparsifier.kept == sparsifier.plan.kept
            at_work = method.measures(sparsifier)["mean size at work while drawing"]
            assert at_work == pytest.approx(0.29, abs=0.04)
    assert found == pytest.approx({"grow_scs": 0.959, "gmp": 0.933, "static_random": 0.926}, abs=0.03)
