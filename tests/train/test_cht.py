"""CHT: growth by the graph alone, soft and hard, and units that lead nowhere."""

import dataclasses

import pytest
import torch

from openwork import CH3L3, CHT, SET, StaticRandom
from openwork.graphs import ch3_l3
from openwork.testing import check_method
from openwork.train.cht import importance
from tests.train.runs import Run, net

METHOD = CHT(sparsity=0.8, steps=20, every=2)
HARD = dataclasses.replace(METHOD, soft=False, grow=CH3L3(soft=False))


@pytest.mark.parametrize(
    "options",
    [{"sparsity": 0.7}, {"sparsity": 0.6, "soft": False, "grow": CH3L3(soft=False), "score": "relative"}],
)
def test_conformance(options):
    check_method(CHT, **options)


def test_the_hard_rules_take_the_best():
    run = Run(HARD, net((20, 30))).step(1)
    run.backward()
    run.optimizer.param_groups[0]["lr"] = 0.0
    weight, old = run.weights["0.weight"], run.sparsifier.masks["0.weight"]
    run.optimizer.step()
    now = run.sparsifier.masks["0.weight"]
    count = int(old.sum())
    dropped = weight.abs().masked_fill(~old, torch.inf).flatten().sort().indices[: int(0.3 * count)]
    survivors = old.clone()
    survivors.view(-1)[dropped] = False
    assert (now | ~survivors).all()
    assert int(now.sum()) == count
    scores = ch3_l3(survivors)
    assert scores[now & ~survivors].min() >= scores[~now].max()
    assert scores[now & ~survivors].min() > 0


def test_no_gradient_is_needed():
    assert METHOD.growth_needs == frozenset()


def test_stored_and_masked_agree():
    for method in (METHOD, HARD, dataclasses.replace(METHOD, chain=("*",), score="relative")):
        masked, stored = Run(method).step(20), Run(method, stored=True).step(20)
        assert stored.losses == pytest.approx(masked.losses, rel=1e-9)


def test_chains_leave_no_dead_ends():
    """After the removal, and before growth, every unit has both ways or none."""
    method = CHT(sparsity=0.9, steps=20, every=2, chain=("*.weight",), drop=0.5)
    run = Run(method).step(1)
    left = {
        c.name: torch.zeros(c.weight.shape, dtype=torch.bool) for c in run.sparsifier.connections.values()
    }
    survivors = {}
    for c in run.sparsifier.connections.values():
        survivors[c] = torch.rand(c.kept, generator=torch.Generator().manual_seed(c.kept)) < 0.5
    removed = 0
    for c, alive in method._connected(survivors).items():
        assert (survivors[c] | ~alive).all()
        removed += int((survivors[c] & ~alive).sum())
        left[c.name].view(-1)[c.positions[alive]] = True
    first, second, third = left.values()
    assert torch.equal(first.any(1), second.any(0))
    assert torch.equal(second.any(1), third.any(0))
    assert removed > 0
    counts = run.counts
    run.step(6)
    assert run.counts == counts


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (("no",), "matches none"),
        (("0.weight", "4.weight"), "do not follow one another"),
        ("*.weight", "matches none"),
    ],
)
def test_a_chain_that_is_none_is_refused_before_anything_changes(chain, message):
    model = net()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        Run(dataclasses.replace(METHOD, chain=chain), model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_relative_importance_is_the_formula():
    run = Run(METHOD)
    c = run.sparsifier.connections["2.weight"]
    w = run.weights["2.weight"].abs()
    expected = w / w.sum(0, keepdim=True) + w / w.sum(1, keepdim=True)
    torch.testing.assert_close(importance(c, "relative"), expected[c.mask])
    torch.testing.assert_close(importance(c, "magnitude"), w[c.mask])


def test_soft_removal_turns_hard_with_time():
    """Survivors are drawn by |w|^T with T growing from 1 to 3: their mean magnitude grows."""
    run = Run(dataclasses.replace(METHOD, grow="random", sparsity=0.5), net((60, 60)))
    c = next(iter(run.sparsifier.connections.values()))
    means = []
    for step in (1, 20):
        ((_, rewiring),) = METHOD.choose(run.sparsifier, step)
        stayed = torch.isin(c.positions, rewiring.positions)
        means.append(c.values[~stayed].abs().mean().item())
    assert means[1] < means[0] < c.values.abs().mean().item()


def test_the_parts_switched_off():
    still = dataclasses.replace(METHOD, drop=0.0)
    assert Run(still).step(20).losses == Run(still.reduced_to(StaticRandom)).step(20).losses
    plain = dataclasses.replace(METHOD, soft=False, grow="random")
    assert Run(plain).step(20).losses == Run(plain.reduced_to(SET)).step(20).losses


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="single units"):
        CHT(pattern="groups 0")
    with pytest.raises(ValueError, match="unknown score"):
        CHT(score="taste")
    with pytest.raises(ValueError, match="both signs"):
        CHT(drop_by="signed")
