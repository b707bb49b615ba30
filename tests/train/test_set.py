"""SET against its paper: what is dropped, what is grown, how much is ever tried."""

import math

import pytest
import torch
from torch import nn

from openwork.schedules import Cosine
from openwork.sparsifier import attach
from openwork.train.set import SET


def layer(shape=(13, 17), seed=0):
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False)).double()
    with torch.no_grad():
        g = torch.Generator().manual_seed(seed)
        model[0].weight.copy_(
            torch.randn(shape, generator=g) + 0.3
        )  # more positive weights than negative ones
    return model


def updated(model, method):
    """The weight before and after one update."""
    sparsifier = attach(model, None, method)
    for _ in range(method.every - 1):
        sparsifier.step()
    before, old = model[0].weight.detach().clone(), sparsifier.masks["0.weight"]
    sparsifier.step()
    assert sparsifier.updates == 1
    return (
        before.flatten(),
        old.flatten(),
        model[0].weight.detach().flatten(),
        sparsifier.masks["0.weight"].flatten(),
    )


@pytest.mark.parametrize("zeta", [0.1, 0.3, 0.77, 1.0])
def test_the_stated_share_of_each_sign_is_dropped(zeta):
    before, old, after, new = updated(layer(), SET(sparsity=0.5, steps=10, every=2, drop=zeta, init="keep"))
    active = old.nonzero().flatten().tolist()
    positive = sorted((i for i in active if before[i] >= 0), key=lambda i: before[i].item())
    negative = sorted((i for i in active if before[i] < 0), key=lambda i: -before[i].item())
    dropped = (
        positive[: math.floor(zeta * len(positive) + 1e-9)]
        + negative[: math.floor(zeta * len(negative) + 1e-9)]
    )
    survivors = set(active) - set(dropped)
    assert survivors <= set(new.nonzero().flatten().tolist())
    assert int(new.sum()) == len(active)
    for i in survivors:
        assert after[i] == before[i]
    grown = set(new.nonzero().flatten().tolist()) - survivors
    assert len(grown) == len(dropped)
    assert all(after[i] == (before[i] if i in dropped else 0.0) for i in grown)


def test_dropping_by_magnitude():
    method = SET(sparsity=0.5, steps=10, every=1, drop=0.4, drop_by="magnitude", init="keep")
    before, old, _, new = updated(layer(), method)
    active = sorted(old.nonzero().flatten().tolist(), key=lambda i: before[i].abs().item())
    assert set(active[math.floor(0.4 * len(active)) :]) <= set(new.nonzero().flatten().tolist())


def test_blocks_are_dropped_whole_by_their_magnitude():
    method = SET(sparsity=0.5, steps=10, every=1, drop=0.5, pattern="block 2x3", init="keep")
    before, old, _, new = updated(layer((8, 12)), method)
    sums = before.abs().view(4, 2, 4, 3).sum((1, 3)).flatten()
    blocks = [mask.view(4, 2, 4, 3).all(3).all(1).flatten() for mask in (old, new)]
    active = sorted(blocks[0].nonzero().flatten().tolist(), key=lambda b: -sums[b].item())
    assert set(active[:4]) <= set(blocks[1].nonzero().flatten().tolist())
    assert int(blocks[1].sum()) == 8


def test_new_weights_may_start_at_random():
    method = SET(sparsity=0.8, steps=10, every=1, drop=0.5, grown_std=0.1, init="keep")
    _before, old, after, new = updated(layer((80, 90)), method)
    fresh = after[new & ~old]
    assert fresh.std().item() == pytest.approx(0.1, rel=0.15)
    assert bool((fresh != 0).all())


def test_the_share_of_positions_ever_tried_follows_the_formula():
    density, zeta, updates = 0.05, 0.3, 40
    sparsifier = attach(layer((200, 200)), None, SET(sparsity=0.95, drop=zeta, every=1, steps=updates + 1))
    ever = sparsifier.masks["0.weight"]
    for _ in range(updates):
        sparsifier.step()
        assert sparsifier.kept == 2000
        ever = ever | sparsifier.masks["0.weight"]
    assert sparsifier.updates == updates
    expected = 1 - (1 - density) * (1 - zeta * density / (1 - density + zeta * density)) ** updates
    assert expected == pytest.approx(0.492, abs=5e-4)
    assert ever.double().mean().item() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"every": 3}, [3, 6, 9]),  # never at the last step: the topology that was trained is the result
        ({"every": 4}, [4, 8]),
        ({"every": 3, "until": 0.5}, [3, 6]),
        ({"every": 20}, []),
        ({"every": 1, "until": 0.0}, []),
    ],
)
def test_updates_come_at_their_steps(options, steps):
    method = SET(steps=12, **options)
    assert [t for t in range(1, 30) if method.due(t)] == steps


def test_the_drop_fraction_may_be_a_schedule():
    method = SET(
        sparsity=0.5, steps=10, every=5, drop=Cosine(start=0.8, stop=0.0), drop_by="magnitude", init="keep"
    )
    before, old, _, new = updated(layer(), method)
    active = sorted(old.nonzero().flatten().tolist(), key=lambda i: before[i].abs().item())
    dropped = math.floor(0.4 * len(active))  # half way down
    assert set(active[dropped:]) <= set(new.nonzero().flatten().tolist())
    assert not set(active[: dropped - 30]) <= set(new.nonzero().flatten().tolist())


def test_everything_dense_has_no_room():
    before, _, after, new = updated(layer(), SET(sparsity=0.0, steps=10, every=1))
    assert bool(new.all())
    assert torch.equal(before, after)  # what is dropped is grown again, and keeps its weight
