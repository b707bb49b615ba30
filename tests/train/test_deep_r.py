"""Deep R: exact counts and fixed signs at every step."""

import dataclasses

import pytest
import torch

from openwork import DeepR, attach, to_sparse_
from openwork.testing import check_method
from openwork.train.deep_r import AWAKE
from tests.train.runs import Run, net

WILD = DeepR(sparsity=0.8, l1=0.05, noise=0.5)


@pytest.mark.parametrize("options", [{}, {"l1": 0.05, "noise": 1.0}, {"pattern": "fan-in", "noise": 1.0}])
def test_conformance(options):
    check_method(DeepR, **options)


@pytest.mark.parametrize("stored", [False, True])
def test_every_step_keeps_the_count_and_no_live_weight_changes_sign(stored):
    run = Run(WILD, stored=stored)
    wanted, rewired = run.counts, 0
    for _ in range(25):
        before, old = run.weights, run.sparsifier.masks
        run.step()
        assert run.counts == wanted
        for name, now in run.weights.items():
            mask = run.sparsifier.masks[name]
            assert (now[~mask] == 0).all()
            crossed = (before[name] * now < 0) & old[name] & mask
            assert (now[crossed].abs() == AWAKE).all()  # died and woke in the same step
            entered = mask & ~old[name]
            assert (now[entered].abs() == AWAKE).all()
            rewired += int(entered.sum())
        for c in run.sparsifier.connections.values():
            signs = run.sparsifier.state[f"signs {c.name}"]
            assert (signs * c.values >= 0).all()
            assert set(signs.tolist()) <= {-1, 1}
    assert rewired > 25


def test_without_forces_nothing_happens():
    model = net()
    sparsifier = attach(model, None, DeepR(sparsity=0.7, l1=0.0, noise=0.0))
    before, masks = [p.clone() for p in model.parameters()], sparsifier.masks
    for _ in range(5):
        sparsifier.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())


def test_the_pull_is_in_units_of_the_learning_rate():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sparsifier = attach(model, optimizer, DeepR(sparsity=0.5, l1=0.02, noise=0.0))
    connections = sparsifier.connections["2.weight"]
    before, positions = connections.values.clone(), connections.positions
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    now = model[2].weight.detach().flatten()[positions]
    alive = before.abs() > 0.01
    torch.testing.assert_close(now[alive], (before - 0.01 * before.sign())[alive])
    assert (now[~alive].abs() <= AWAKE).all()


def test_the_force_is_in_units_of_the_learning_rate():
    model = net((100, 200))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.no_grad():
        model[0].weight.fill_(10.0)
    attach(model, optimizer, DeepR(sparsity=0.5, l1=0.0, noise=3.0, init="keep"))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = model[0].weight.detach()
    moved = moved[moved != 0] - 10
    assert moved.std().item() == pytest.approx(0.03, rel=0.05)
    assert moved.mean().item() == pytest.approx(0.0, abs=0.001)


def test_what_wakes_has_no_past():
    run = Run(WILD)
    for _ in range(6):
        old = run.sparsifier.masks
        run.step()
        for name, c in run.sparsifier.connections.items():
            fresh = c.mask & ~old[name]
            momentum = run.optimizer.state[c.weight.parameter]["momentum_buffer"]
            assert (momentum[fresh] == 0).all()


def test_stored_and_masked_agree():
    assert Run(WILD, stored=True).step(15).losses == pytest.approx(Run(WILD).step(15).losses, rel=1e-9)


def test_rows_keep_their_counts():
    run = Run(dataclasses.replace(WILD, pattern="fan-in"))
    before = {name: mask.sum(1) for name, mask in run.sparsifier.masks.items()}
    run.step(10)
    for name, mask in run.sparsifier.masks.items():
        assert torch.equal(mask.sum(1), before[name])


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="single connections"):
        DeepR(pattern="block 4x1")
    with pytest.raises(ValueError, match="noise"):
        DeepR(noise=-1.0)


@pytest.mark.parametrize("stored", [False, True])
def test_what_wakes_in_its_old_place_begins_anew(stored):
    """Half of the places are taken: many a dead connection is drawn again at once, with no memory of its momentum."""
    model, method = net(), DeepR(sparsity=0.1, l1=0.0, noise=5.0)
    if stored:
        to_sparse_(model, method)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    sparsifier = attach(model, optimizer, method)
    again = 0
    for _ in range(3):
        before = {name: c.positions for name, c in sparsifier.connections.items()}
        sizes = [p.data_ptr() for p in model.parameters()]
        optimizer.zero_grad()
        model(torch.ones(3, 13, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        assert sizes == [p.data_ptr() for p in model.parameters()]
        for name, c in sparsifier.connections.items():
            woken = c.values.abs() <= 1.01 * AWAKE
            moments = optimizer.state[c.weight.parameter]["exp_avg"]
            moments = moments if stored else moments.flatten()[c.positions]
            assert not moments[woken].any()
            assert moments[~woken].all()
            again += int(torch.isin(c.positions[woken], before[name]).sum())
    assert again > 20
