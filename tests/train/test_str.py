"""STR learns thresholds, sees weights through them, and ends with an exact count."""

import dataclasses
import math

import pytest
import torch

from openwork import STR
from openwork.testing import check_method
from tests.train.runs import Run, net

METHOD = STR(sparsity=0.7, steps=40, initial=-3.0, decay=0.3)


@pytest.mark.parametrize(
    "options", [{}, {"initial": -3.0, "decay": 0.3}, {"allocation": "uniform"}, {"pattern": "1:3"}]
)
def test_conformance(options):
    check_method(STR, **options)


def sigmoid(s):
    return 1 / (1 + math.exp(-s))


def test_the_network_sees_the_proximal_point():
    run = Run(METHOD).step(5)
    for name, c in run.sparsifier.connections.items():
        g, shown = sigmoid(float(run.sparsifier.state[f"s {name}"][0])), run.weights[name]
        assert c.threshold == pytest.approx(g, rel=1e-12)
        assert torch.equal(shown != 0, c.latent.abs() > c.threshold)
        for offset in (-1e-3, 1e-3, -0.1, 0.1):
            cost, other = (0.5 * (w - c.latent).square() + g * w.abs() for w in (shown, shown + offset))
            assert (cost <= other).all()


def test_both_gradients():
    run = Run(METHOD, lr=0.05, momentum=0.0).step(3)
    c = run.sparsifier.connections["2.weight"]
    s = torch.tensor(float(run.sparsifier.state["s 2.weight"][0]), dtype=torch.float64, requires_grad=True)
    theta = c.latent.clone().requires_grad_()
    run.backward()
    effective = theta.sign() * torch.relu(theta.abs() - torch.sigmoid(s))
    ds, dtheta = torch.autograd.grad((effective * c.weight.parameter.grad).sum(), (s, theta))
    assert (dtheta == 0).any()
    assert (dtheta != 0).any()
    run.optimizer.step()
    expected = float(s.detach()) - 0.05 * (float(ds) + 0.3 * float(s.detach()))
    assert float(run.sparsifier.state["s 2.weight"][0]) == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(c.latent, theta.detach() - 0.05 * dtheta)


def test_without_a_loss_the_threshold_opens_as_decay_has_it():
    run = Run(dataclasses.replace(METHOD, initial=-6.0, decay=0.02), lr=0.1, momentum=0.0)
    for _ in range(20):
        for p in run.model.parameters():
            p.grad = torch.zeros_like(p)
        run.optimizer.step()
    s = float(run.sparsifier.state["s 0.weight"][0])
    assert s == pytest.approx(-6 * (1 - 0.1 * 0.02) ** 20, rel=1e-12)
    assert s == pytest.approx(-6 * math.exp(-20 * 0.1 * 0.02), rel=1e-3)


def test_thresholds_sparsify_before_the_count_is_made_exact():
    run = Run(METHOD)
    seen = []
    for _ in range(29):
        run.step()
        seen.append(sum(int((w != 0).sum()) for w in run.weights.values()))
        assert run.sparsifier.sparsity == 0.0
    assert seen[-1] < 0.7 * seen[0]
    thresholds = [c.threshold for c in run.sparsifier.connections.values()]
    assert len(set(thresholds)) == 3


@pytest.mark.parametrize("options", [{}, {"overrides": {"2.weight": 0.4}}, {"allocation": "uniform"}])
def test_thresholds_rise_on_schedule(options):
    method = STR(sparsity=0.7, steps=40, **options)
    run = Run(method)
    rows = run.sparsifier.plan.sparse
    exact = 0
    for step in range(1, 30):
        run.step()
        left = {n: int((w != 0).sum()) for n, w in run.weights.items()}
        part = 1 - (1 - step / 30) ** 3
        free = [row for row in rows if not row.fixed]
        size, final = sum(row.numel for row in free), sum(row.kept for row in free)
        wanted = round(size - (size - final) * part)
        # Weights that fall below a threshold by themselves make it a few less.
        assert 0.95 * wanted <= sum(left[row.name] for row in free) <= wanted
        exact += sum(left[row.name] for row in free) == wanted
        for row in rows:
            if row.fixed or options.get("allocation"):
                assert 0.9 * row.numel * (1 - part * row.sparsity) - 2 <= left[row.name]
                assert left[row.name] <= row.numel * (1 - part * row.sparsity) + 1
    assert exact > 10
    thresholds = [c.threshold for c in run.sparsifier.connections.values()]
    assert len(set(thresholds)) == 3
    assert all(0.05 < g < 1.0 for g in thresholds)
    run.step()
    assert run.sparsifier.kept == run.sparsifier.plan.kept


def test_the_loss_closes_the_threshold_of_a_layer_it_needs():
    run = Run(STR(sparsity=0.7, steps=200), lr=1.0, momentum=0.0)

    def thresholds(steps, pull):
        for _ in range(steps):
            for name, c in run.sparsifier.connections.items():
                c.weight.parameter.grad = -pull * c.latent.sign() * (name == "2.weight")
            run.optimizer.step()
        return [c.threshold for c in run.sparsifier.connections.values()]

    first, second, third = thresholds(75, 0.0)
    assert second == pytest.approx(first, rel=0.1)
    assert third == pytest.approx(first, rel=0.1)
    kept = int((run.weights["2.weight"] != 0).sum())
    first, second, third = thresholds(1, 1e-2)
    assert second < 0.9 * min(first, third)  # every weight seen there would like to be larger
    assert int((run.weights["2.weight"] != 0).sum()) > kept


def test_the_end_is_exact_and_keeps_what_was_seen():
    run = Run(METHOD).step(29)
    run.backward()
    run.optimizer.step()
    c = run.sparsifier.connections["0.weight"]
    assert run.sparsifier.kept == run.sparsifier.plan.kept
    masks, latent = run.sparsifier.masks, {n: c.latent.clone() for n, c in run.sparsifier.connections.items()}
    assert run.weights["0.weight"].abs().max() == c.latent.abs().max()
    assert c.threshold == 0.0
    run.step(10)
    for name, c in run.sparsifier.connections.items():
        assert torch.equal(c.mask, masks[name])
        assert torch.equal(c.latent[~c.mask], latent[name][~c.mask])
        assert not run.weights[name][~c.mask].any()


def test_the_margins_of_all_layers_are_ranked_together():
    run = Run(dataclasses.replace(METHOD, steps=1, until=1.0), net(), lr=0.0)
    before = {n: c.latent.abs() - c.threshold for n, c in run.sparsifier.connections.items()}
    run.step()
    everything = torch.cat([m.flatten() for m in before.values()])
    threshold = everything.sort(descending=True).values[run.sparsifier.plan.kept - 1]
    for name, mask in run.sparsifier.masks.items():
        assert torch.equal(mask, before[name] >= threshold)


def test_with_closed_thresholds_it_is_one_shot_pruning():
    ((setting, simpler),) = METHOD.limits()
    assert Run(setting).step(40).losses == Run(simpler).step(40).losses


def test_impossible_options():
    with pytest.raises(ValueError, match="decay"):
        STR(decay=-1.0)
    with pytest.raises(ValueError, match="until"):
        STR(until=1.5)
