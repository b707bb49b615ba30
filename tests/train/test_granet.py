"""GraNet between its limits, GMP and RigL."""

import dataclasses

import pytest
import torch

from openwork import GMP, Cosine, GraNet, plan
from openwork.testing import check_method
from openwork.train.gmp import kept_at
from tests.train.runs import Run, net

METHOD = GraNet(sparsity=0.8, steps=24, every=3)


@pytest.mark.parametrize("options", [{}, {"grow": "random", "initial": 0.0}, {"pattern": "fan-in"}])
def test_conformance(options):
    check_method(GraNet, **options)


def test_the_limits_are_gmp_and_rigl():
    names = [type(simpler).__name__ for _, simpler in METHOD.limits()]
    assert names == ["GMP", "RigL"]
    for setting, simpler in METHOD.limits():
        a, b = Run(setting).step(24), Run(simpler).step(24)
        assert a.losses == b.losses
        assert all(torch.equal(mask, b.sparsifier.masks[name]) for name, mask in a.sparsifier.masks.items())


def test_it_starts_sparse_with_the_densities_of_erk():
    run = Run(METHOD)
    expected = [row.kept for row in plan(net(), GMP(sparsity=0.5, allocation="erk")) if row.sparse]
    assert run.counts == expected
    assert Run(dataclasses.replace(METHOD, initial=0.0)).sparsifier.sparsity == 0.0


def test_the_count_follows_the_cubic_and_then_stays():
    run = Run(METHOD)
    size = sum(c.numel for c in run.sparsifier.connections.values())
    final = run.sparsifier.plan.kept
    kept, moved_at_the_end = run.sparsifier.kept, False
    for step in range(1, 25):
        masks = run.sparsifier.masks
        run.step()
        changed = any(not torch.equal(mask, masks[name]) for name, mask in run.sparsifier.masks.items())
        if METHOD.due(step):
            kept = kept_at(METHOD, min((step - 1) / (16 - 1), 1.0), size, final)
        else:
            assert not changed
        assert run.sparsifier.kept == kept
        moved_at_the_end |= changed and step > 16  # the sparsity is final then, the topology is not
    assert run.sparsifier.kept == final
    assert moved_at_the_end


def test_what_is_grown_has_the_largest_gradients():
    method = dataclasses.replace(METHOD, drop=0.4)
    run = Run(method, net((30, 20)))
    run.step(3)
    run.backward()  # step 4 is an update
    before = run.sparsifier.masks["0.weight"]
    c = run.sparsifier.connections["0.weight"]
    gradient = c.dense_gradient.abs()
    run.optimizer.step()
    after = run.sparsifier.masks["0.weight"]
    grown = after & ~before
    assert grown.any()
    assert gradient[grown].min() >= gradient[~after & ~before].max()


def test_stored_and_masked_agree():
    assert Run(METHOD, stored=True).step(24).losses == pytest.approx(Run(METHOD).step(24).losses, rel=1e-9)


def test_drop_is_a_fraction():
    with pytest.raises(ValueError, match="drop"):
        GraNet(drop=Cosine(start=1.5))
