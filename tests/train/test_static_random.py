"""A random topology that never changes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openwork import GMP, ISSP, SNIP, STR, KeepZeros, Like, sparsify_
from openwork.sparsifier import attach
from openwork.testing import batches, network, step
from openwork.train.static_random import StaticRandom, repaired
from tests.train.runs import Run, net


def lonely(positions, shape):
    """Output units without input, and inputs without output, counted by loops."""
    taps = math.prod(shape[2:])
    pairs = {(p // (shape[1] * taps), p // taps % shape[1]) for p in positions}
    return (shape[0] - len({o for o, _ in pairs}), shape[1] - len({i for _, i in pairs}))


def test_the_mask_never_changes_and_is_the_same_everywhere():
    masks = []
    for seed in (0, 1):
        model = network(seed=seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = attach(model, optimizer, StaticRandom(sparsity=0.8, seed=4))
        start = sparsifier.masks
        for batch in batches(4):
            step(model, optimizer, batch)
        assert all(torch.equal(m, sparsifier.masks[n]) for n, m in start.items())
        masks.append(start)
    assert all(torch.equal(m, masks[1][n]) for n, m in masks[0].items())
    assert sparsifier.updates == 0


def test_the_mask_of_a_layer_does_not_depend_on_the_others():
    alone = attach(network(), None, StaticRandom(overrides={"4.weight": 0.9}, seed=3))
    among = attach(network(), None, StaticRandom(overrides={"4.weight": 0.9}, exclude=("0.*",), seed=3))
    assert torch.equal(alone.masks["4.weight"], among.masks["4.weight"])


def test_every_connection_is_equally_likely():
    counts = torch.zeros(6, 5)
    for seed in range(600):
        sparsifier = attach(nn.Sequential(nn.Linear(5, 6)), None, StaticRandom(sparsity=0.7, seed=seed))
        counts += sparsifier.masks["0.weight"]
    # 600 draws with probability 0.3: mean 180, standard deviation 11
    assert counts.sum() == 600 * 9
    assert bool(((counts - 180).abs() < 55).all())


@settings(max_examples=60)
@given(
    st.one_of(
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 3)),
    ),
    st.integers(0, 2**32),
    st.floats(0, 1),
)
def test_repair_connects_every_unit_and_keeps_the_count(shape, seed, share):
    g = torch.Generator().manual_seed(seed)
    size, enough = math.prod(shape), shape[0] + shape[1] - 1
    kept = min(size, enough + round(share * (size - enough)))
    positions = torch.randperm(size, generator=g)[:kept].sort().values
    before = positions.clone()
    mended = repaired(positions, shape, g)
    assert torch.equal(positions, before)
    assert mended.tolist() == sorted(set(mended.tolist()))
    assert mended.numel() == kept
    assert 0 <= int(mended.min()) <= int(mended.max()) < size
    assert lonely(mended.tolist(), shape) == (0, 0)
    if lonely(before.tolist(), shape) == (0, 0):
        assert torch.equal(mended, before)


@settings(max_examples=30)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 2**32), st.data())
def test_with_too_few_connections_repair_does_what_it_can(out, inputs, seed, data):
    g = torch.Generator().manual_seed(seed)
    kept = data.draw(st.integers(0, out + inputs - 2))
    positions = torch.randperm(out * inputs, generator=g)[:kept].sort().values
    mended = repaired(positions, (out, inputs), g)
    assert mended.numel() == kept
    assert sum(lonely(mended.tolist(), (out, inputs))) <= sum(lonely(positions.tolist(), (out, inputs)))


def test_repair_through_attach():
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    method = StaticRandom(sparsity=0.9, repair=True, allocation="uniform")
    sparsifier = attach(model, None, method)
    for name, mask in sparsifier.masks.items():
        assert lonely(mask.flatten().nonzero().flatten().tolist(), mask.shape) == (0, 0)
        assert int(mask.sum()) == next(row.kept for row in sparsifier.plan.sparse if row.name == name)


@pytest.mark.parametrize("pattern", ["fan-in", "block 2x1", "2:4"])
def test_repair_moves_single_connections(pattern):
    with pytest.raises(ValueError, match=r"repair moves single connections, and 0.weight has pattern"):
        attach(nn.Sequential(nn.Linear(8, 8)), None, StaticRandom(sparsity=0.5, repair=True, pattern=pattern))


@pytest.mark.parametrize(
    "method",
    [
        GMP(sparsity=0.8, steps=30, every=4),
        GMP(sparsity=0.8, steps=30, every=4, allocation="global"),
        ISSP(sparsity=0.8, steps=30),
        STR(sparsity=0.8, steps=30, initial=-3.0, decay=0.3),
    ],
    ids=lambda method: f"{method.name}-{method.allocation}",
)
def test_pruning_may_start_inside_a_random_mask(method):
    """It never leaves the mask, and ends with the count that was asked for; a mask of everything is the original method."""

    def run(masks):
        trained = Run(KeepZeros(), net())
        trained.sparsifier.detach()
        trained.sparsifier = attach(trained.model, trained.optimizer, method, masks=masks)
        for _ in range(30):
            trained.step()
            assert all(not bool((m & ~masks[n]).any()) for n, m in trained.sparsifier.masks.items())
            assert all(bool((w[~masks[n]] == 0).all()) for n, w in trained.weights.items())
        return trained

    start = attach(net(), None, StaticRandom(sparsity=0.5, allocation="balanced"))
    inside = run(start.masks)
    assert inside.sparsifier.kept == round(0.2 * sum(m.numel() for m in start.masks.values()))
    everything = run({name: torch.ones_like(mask) for name, mask in start.masks.items()})
    original = Run(method).step(30)
    assert all(torch.equal(w, original.weights[name]) for name, w in everything.weights.items())


def test_too_small_a_start_is_not_filled_up():
    masks = attach(net(), None, StaticRandom(sparsity=0.95)).masks
    for method in (GMP(sparsity=0.8, steps=10, every=2), STR(sparsity=0.8, steps=10)):
        run = Run(KeepZeros(), net())
        run.sparsifier.detach()
        run.sparsifier = attach(run.model, run.optimizer, method, masks=masks)
        run.step(10)
        assert run.sparsifier.kept <= sum(int(mask.sum()) for mask in masks.values())
        assert all(not bool((m & ~masks[n]).any()) for n, m in run.sparsifier.masks.items())


def test_the_split_of_another_topology_with_other_connections():
    model = net()
    x = torch.randn(16, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = sparsify_(model, SNIP(sparsity=0.8), data=[(x, torch.arange(16) % 5)]).masks
    control = attach(net(), None, StaticRandom(sparsity=0.8, allocation=Like.of(chosen))).masks
    assert {n: int(m.sum()) for n, m in control.items()} == {n: int(m.sum()) for n, m in chosen.items()}
    assert not torch.equal(control["0.weight"], chosen["0.weight"])
