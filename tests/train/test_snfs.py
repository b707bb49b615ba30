"""Sparse momentum: shares, and connections that move from layer to layer."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork import SET, SNFS, attach
from openwork.testing import check_method
from openwork.train.snfs import regrown
from tests.train.runs import Run, net

METHOD = SNFS(sparsity=0.8, steps=24, every=3)
STORABLE = dataclasses.replace(METHOD, redistribute="magnitude", grow="gradient")


@pytest.mark.parametrize(
    "options", [{}, {"redistribute": "none"}, {"redistribute": "magnitude", "grow": "gradient"}]
)
def test_conformance(options):
    check_method(SNFS, **options)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1)), min_size=1, max_size=6).filter(
        lambda layers: sum(weight for _, weight in layers) > 0.01
    ),
    st.floats(0, 1),
)
def test_all_that_is_dropped_is_grown_where_there_is_room(layers, part):
    free = [places for places, _ in layers]
    weight = sum(w for _, w in layers)
    shares = [w / weight for _, w in layers]
    total = int(part * sum(free))
    counts = regrown(shares, total, free)
    assert sum(counts) == total
    assert all(0 <= count <= places for count, places in zip(counts, free, strict=True))
    if all(share * total <= 0.99 * places for share, places in zip(shares, free, strict=True)):
        assert all(abs(c - share * total) < 1 for c, share in zip(counts, shares, strict=True))


def test_overflow_goes_to_all_in_equal_parts():
    assert regrown([1.0, 0.0, 0.0], 300, [100, 1000, 1000]) == [99, 101, 100]
    assert regrown([0.5, 0.5, 0.0], 90, [1000, 1000, 1000]) == [45, 45, 0]


def test_an_update_is_the_algorithm_of_the_paper():
    """Written down once more, from dense tensors."""
    run = Run(dataclasses.replace(METHOD, drop=0.4))
    velocity = {name: torch.zeros_like(w) for name, w in run.weights.items()}
    for step in (1, 2, 3):
        run.backward()
        for name, c in run.sparsifier.connections.items():
            velocity[name] = 0.9 * velocity[name] + c.dense_gradient
        old = run.sparsifier.masks
        if step < 3:
            run.optimizer.step()
    kept = {name: int(mask.sum()) for name, mask in old.items()}
    run.optimizer.param_groups[0]["lr"] = 0.0  # so that the weights are known before the update
    weights = run.weights
    run.optimizer.step()
    strength = {name: velocity[name][old[name]].abs().mean().item() for name in old}
    survivors = {}
    for name, mask in old.items():
        ranked = weights[name].abs().masked_fill(~mask, math.inf).flatten().sort().indices
        survivors[name] = mask.clone()
        survivors[name].view(-1)[ranked[: math.floor(0.4 * kept[name])]] = False
    dropped = sum(kept[name] - int(s.sum()) for name, s in survivors.items())
    free = {name: int((~s).sum()) for name, s in survivors.items()}
    wanted = {name: v / sum(strength.values()) * dropped for name, v in strength.items()}
    assert all(wanted[name] < 0.99 * free[name] for name in wanted)
    now = run.sparsifier.masks
    assert sum(int(mask.sum()) for mask in now.values()) == sum(kept.values())
    assert {name: int(mask.sum()) for name, mask in now.items()} != kept
    for name, mask in now.items():
        assert (mask | ~survivors[name]).all()
        grown = mask & ~survivors[name]
        assert abs(int(grown.sum()) - wanted[name]) < 1
        left = velocity[name].abs()
        assert left[grown].min() >= left[~mask].max()


@pytest.mark.parametrize("redistribute", ["momentum", "magnitude", "nonzeros"])
def test_layers_change_and_the_total_does_not(redistribute):
    run = Run(dataclasses.replace(METHOD, redistribute=redistribute))
    total, before = run.sparsifier.kept, run.counts
    for _ in range(24):
        run.step()
        assert run.sparsifier.kept == total
    if redistribute != "nonzeros":
        assert run.counts != before


def test_a_parameter_without_momentum_only_loses():
    model = net()
    model[2].weight.register_hook(torch.zeros_like)
    run = Run(METHOD, model)
    before = run.sparsifier.connections["2.weight"].kept
    run.step(3)
    assert run.sparsifier.connections["2.weight"].kept == before - math.floor(METHOD.drop.at(3 / 24) * before)


def test_a_nearly_full_parameter_that_deserves_more_drops_no_more_than_it_lacks():
    method = SNFS(
        sparsity=0.6, steps=10, every=2, drop=0.5, overrides={}, redistribute="magnitude", grow="random"
    )
    model = net((20, 20, 20))
    masks = {"0.weight": torch.rand(20, 20) < 0.3, "2.weight": torch.ones(20, 20, dtype=torch.bool)}
    masks["2.weight"][0] = False  # 5 % sparse
    with torch.no_grad():
        model[2].weight.mul_(10)
    run = Run(method, model)
    run.sparsifier.detach()
    run.sparsifier = attach(model, run.optimizer, method, masks=masks)
    c = run.sparsifier.connections["2.weight"]
    moves = {c.name: rewiring.positions for c, rewiring in method.choose(run.sparsifier, 2)}
    stayed = torch.isin(c.positions, moves["2.weight"])
    assert int((~stayed).sum()) <= 0.05 * c.kept


def test_without_redistribution_and_momentum_it_is_set():
    plain = dataclasses.replace(METHOD, redistribute="none", grow="random")
    assert Run(plain).step(24).losses == Run(plain.reduced_to(SET)).step(24).losses
    assert plain.reduced_to(SET).drop_by == "magnitude"


def test_overrides_keep_their_counts():
    run = Run(dataclasses.replace(METHOD, overrides={"2.*": 0.5}))
    before = run.sparsifier.connections["2.weight"].kept
    run.step(24)
    assert run.sparsifier.connections["2.weight"].kept == before


def test_stored_where_no_dense_momentum_is_needed():
    masked, stored = Run(STORABLE).step(24), Run(STORABLE, stored=True).step(24)
    assert stored.losses == pytest.approx(masked.losses, rel=1e-9)
    assert stored.counts == masked.counts
    with pytest.raises(ValueError, match="momentum of those that do not exist"):
        Run(METHOD, stored=True)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="redistribute='none'"):
        SNFS(pattern="2:4")
    with pytest.raises(ValueError, match="unknown redistribute"):
        SNFS(redistribute="fair")
    SNFS(pattern="2:4", redistribute="none")
