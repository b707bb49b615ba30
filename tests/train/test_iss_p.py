"""ISS-P shrinks what it would prune, and prunes it at last."""

import dataclasses

import pytest
import torch

from openwork import GMP, ISSP
from openwork.testing import check_method
from tests.train.runs import Run, net

METHOD = ISSP(sparsity=0.75, steps=20)


@pytest.mark.parametrize(
    "options", [{}, {"pattern": "1:3"}, {"pattern": "block 3x1"}, {"allocation": "global"}]
)
def test_conformance(options):
    check_method(ISSP, **options)


def still(method, steps, model=None):
    """A run without gradients: only the method changes weights."""
    run = Run(method, model, lr=0.0)
    for _ in range(steps):
        for p in run.model.parameters():
            p.grad = torch.zeros_like(p)
        run.optimizer.step()
    return run


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_without_gradients_the_smallest_weights_decay_geometrically(steps):
    before = {n: p.detach().clone() for n, p in net().named_parameters()}
    run = still(METHOD, steps)
    for row in run.sparsifier.plan.sparse:
        w = before[row.name]
        weak = w.abs() < w.abs().flatten().sort(descending=True).values[row.kept - 1]
        assert int(weak.sum()) == row.numel - row.kept
        torch.testing.assert_close(run.weights[row.name][weak], w[weak] * 0.95**steps, rtol=1e-12, atol=0)
        assert torch.equal(run.weights[row.name][~weak], w[~weak])
    assert run.sparsifier.sparsity == 0.0


def test_it_is_weight_decay_on_the_smallest_weights_alone():
    lr, shrink = 0.1, 0.9
    run = Run(dataclasses.replace(METHOD, shrink=shrink), lr=lr, momentum=0.0)
    run.backward()
    w = {c.name: c.weight.parameter.detach().clone() for c in run.sparsifier.connections.values()}
    g = {c.name: c.weight.parameter.grad.clone() for c in run.sparsifier.connections.values()}
    run.optimizer.step()
    decay = (1 - shrink) / lr
    for row in run.sparsifier.plan.sparse:
        stepped = w[row.name] - lr * g[row.name]
        order = stepped.abs().flatten().argsort(stable=True)
        flat = stepped.flatten()
        flat[order[: row.numel - row.kept]] *= 1 - lr * decay
        torch.testing.assert_close(run.weights[row.name].flatten(), flat)


def test_weights_come_back_until_they_are_cut():
    run = Run(METHOD, lr=0.5)
    weak = []
    for _ in range(9):
        run.step()
        w = run.weights["2.weight"].abs().flatten()
        weak.append(set(w.argsort()[: int(0.75 * w.numel())].tolist()))
    assert len({frozenset(u) for u in weak}) > 1
    run.step()
    masks = run.sparsifier.masks
    assert run.counts == [row.kept for row in run.sparsifier.plan.sparse]
    run.step(10)
    assert all(torch.equal(mask, masks[name]) for name, mask in run.sparsifier.masks.items())


def test_factor_zero_is_iterative_hard_thresholding():
    run = Run(dataclasses.replace(METHOD, shrink=0.0), lr=5.0)
    masks = []
    for _ in range(9):
        run.step()
        nonzero = {n: w != 0 for n, w in run.weights.items()}
        for row in run.sparsifier.plan.sparse:
            assert int(nonzero[row.name].sum()) == row.kept
        masks.append(nonzero["0.weight"])
    assert any(not torch.equal(a, masks[0]) for a in masks)
    assert run.sparsifier.sparsity == 0.0


def test_factor_one_is_one_shot_pruning():
    ((setting, simpler),) = METHOD.limits()
    assert isinstance(simpler, GMP)
    assert [t for t in range(1, 21) if simpler.due(t)] == [10]
    assert Run(setting).step(20).losses == Run(simpler).step(20).losses


def test_stored_and_masked_agree():
    assert Run(METHOD, stored=True).step(20).losses == pytest.approx(Run(METHOD).step(20).losses, rel=1e-9)


def test_the_factor_is_a_fraction():
    with pytest.raises(ValueError, match="shrink"):
        ISSP(shrink=1.1)
