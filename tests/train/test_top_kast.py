"""Top-KAST between its two sets: what is seen, what is trained, and what is left alone."""

import dataclasses

import pytest
import torch

from openwork import DNW, TopKAST
from openwork.testing import check_method
from tests.train.runs import Run

METHOD = TopKAST(sparsity=0.8, margin=0.2, every=3)


@pytest.mark.parametrize("options", [{}, {"margin": 0.5}, {"pattern": "block 3x1"}, {"until": 0.5}])
def test_conformance(options):
    check_method(TopKAST, **options)


def test_the_sets_are_nested_exact_and_the_rest_never_changes():
    run = Run(METHOD)
    for _ in range(9):
        before = {n: c.latent.clone() for n, c in run.sparsifier.connections.items()}
        asleep = {n: c.asleep.clone() for n, c in run.sparsifier.connections.items()}
        for row in run.sparsifier.plan.sparse:
            c = run.sparsifier.connections[row.name]
            assert not (c.mask & c.asleep).any()
            assert int((~c.asleep).sum()) == row.kept + round(0.2 * row.numel)
        run.step()
        for n, c in run.sparsifier.connections.items():
            assert torch.equal(c.latent[asleep[n]], before[n][asleep[n]])
            assert not torch.equal(c.latent, before[n])
            assert (run.optimizer.state[c.weight.parameter]["momentum_buffer"] != 0)[~asleep[n]].all()


def test_near_misses_come_in():
    run = Run(METHOD, lr=0.5)
    first = run.sparsifier.masks
    run.step(9)
    assert any(not torch.equal(mask, first[n]) for n, mask in run.sparsifier.masks.items())
    assert run.counts == [row.kept for row in run.sparsifier.plan.sparse]


def test_the_penalty_is_harder_outside_and_absent_where_weights_sleep():
    run = Run(dataclasses.replace(METHOD, strength=0.01), lr=1.0, momentum=0.0)
    for p in run.model.parameters():
        p.grad = torch.zeros_like(p)
    before = {n: c.latent.clone() for n, c in run.sparsifier.connections.items()}
    run.optimizer.step()
    for row in run.sparsifier.plan.sparse:
        c, w = run.sparsifier.connections[row.name], before[row.name]
        miss = ~c.mask & ~c.asleep
        assert miss.any()
        torch.testing.assert_close(c.latent[c.mask], w[c.mask] * 0.99, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            c.latent[miss], w[miss] * (1 - 0.01 * row.numel / row.kept), rtol=1e-12, atol=0
        )
        assert torch.equal(c.latent[c.asleep], w[c.asleep])


def test_with_everything_trained_it_is_dnw():
    ((setting, simpler),) = METHOD.limits()
    assert type(simpler) is DNW
    a, b = Run(setting).step(9), Run(simpler).step(9)
    assert a.losses == b.losses
    assert Run(METHOD).step(9).losses != b.losses


def test_both_sets_become_one():
    run = Run(dataclasses.replace(METHOD, until=0.5, steps=12)).step(6)
    for c in run.sparsifier.connections.values():
        assert torch.equal(c.mask, ~c.asleep)


def test_impossible_options():
    with pytest.raises(ValueError, match="margin"):
        TopKAST(margin=1.5)
    with pytest.raises(ValueError, match="strength"):
        TopKAST(strength=-1.0)
