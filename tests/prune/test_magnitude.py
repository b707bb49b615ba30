"""The facts that global magnitude pruning and LAMP must satisfy."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openwork.allocation import Global
from openwork.patterns import FanIn
from openwork.prune.magnitude import Magnitude
from openwork.pruner import sparsify_


def net(seed=0):
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(11, 13), nn.Linear(13, 3))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.randn(p.shape, generator=g) * (3 - i / 3))
    return model


def masks(method, model=None):
    return sparsify_(net() if model is None else model, method).masks


@settings(max_examples=25)
@given(st.sampled_from(["uniform", "global"]), st.floats(0, 0.98), st.floats(0, 0.98), st.integers(0, 50))
def test_masks_are_nested(allocation, one, two, seed):
    low, high = sorted((one, two))
    more = masks(Magnitude(sparsity=low, allocation=allocation), net(seed))
    fewer = masks(Magnitude(sparsity=high, allocation=allocation), net(seed))
    if allocation == "global":
        assert not any(bool((fewer[n] & ~more[n]).any()) for n in more)
    for name in more:  # within a layer the order is always that of magnitude
        few, many = sorted((fewer[name], more[name]), key=lambda m: int(m.sum()))
        assert not bool((few & ~many).any())


@pytest.mark.parametrize("allocation", ["uniform", "global", "lamp", "erk"])
def test_the_largest_of_each_layer_stay(allocation):
    model = net()
    weights = {n: p.detach().abs().clone() for n, p in model.named_parameters()}
    for name, mask in masks(Magnitude(sparsity=0.8, allocation=allocation), model).items():
        kept, gone = weights[name][mask], weights[name][~mask]
        assert not kept.numel() or not gone.numel() or kept.min() >= gone.max()


def test_scaling_a_layer_raises_its_share_globally_and_changes_nothing_within_layers():
    for allocation in ("uniform", "lamp", "global"):
        scaled = net()
        with torch.no_grad():
            scaled[2].weight *= 3.0
        method = Magnitude(sparsity=0.8, allocation=allocation)
        plain, after = masks(method), masks(method, scaled)
        if allocation == "global":
            assert int(after["2.weight"].sum()) > int(plain["2.weight"].sum())
        else:
            assert all(torch.equal(plain[n], after[n]) for n in plain)


def test_a_floor_saves_a_layer_that_a_global_ranking_empties():
    def faint():
        model = net()
        with torch.no_grad():
            model[3].weight *= 1e-6
        return model

    assert int(masks(Magnitude(sparsity=0.9, allocation="global"), faint())["3.weight"].sum()) == 0
    saved = masks(Magnitude(sparsity=0.9, allocation=Global(floor=0.01)), faint())
    assert int(saved["3.weight"].sum()) == 2  # floor(0.01 * 272)
    assert sum(int(m.sum()) for m in saved.values()) == round(0.1 * 272)
    lamp = masks(Magnitude(kept=3, allocation="lamp"), faint())
    assert [int(m.sum()) for m in lamp.values()] == [1, 1, 1]


def test_equal_weights_are_kept_from_the_first():
    model = nn.Sequential(nn.Linear(4, 3))
    nn.init.constant_(model[0].weight, -2.0)
    assert masks(Magnitude(kept=5), model)["0.weight"].flatten().tolist() == [True] * 5 + [False] * 7


def test_within_each_output_unit():
    model = net()
    weight = model[2].weight.detach().clone()
    mask = masks(Magnitude(sparsity=0.5, pattern=FanIn(4)), model)["2.weight"]
    for row, chosen in zip(weight, mask, strict=True):
        best = sorted(range(11), key=lambda i: -row[i].abs().item())[:4]
        assert chosen.nonzero().flatten().tolist() == sorted(best)


def test_nothing_asked_nothing_changed():
    model = net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    assert all(bool(m.all()) for m in masks(Magnitude(sparsity=0.0), model).values())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
