"""From masked to stored and back, without losing a bit."""

import copy

import pytest
import torch
from torch import nn

from openwork.layouts.conv import SparseConv2d
from openwork.layouts.layer import SparseLayer
from openwork.layouts.linear import SparseLinear
from openwork.prune.magnitude import Magnitude
from openwork.pruner import sparsify_
from openwork.sparsifier import attach
from openwork.storage import to_dense_, to_sparse_
from openwork.testing import batches, network
from openwork.train.gmp import GMP
from openwork.train.rigl import RigL
from openwork.train.static_random import StaticRandom


def same(model, other):
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def test_there_and_back():
    model = network()
    sparsify_(model, Magnitude(sparsity=0.7))
    before = copy.deepcopy(model)
    x = batches(1)[0][0]
    replaced = to_sparse_(model)
    assert {n: c.kept for n, c in replaced.items()} == {"0.weight": 16, "4.weight": 173, "7.weight": 11}
    assert [type(m) for m in model if isinstance(m, SparseLayer)] == [
        SparseConv2d,
        SparseLinear,
        SparseLinear,
    ]
    torch.testing.assert_close(model.eval()(x), before.eval()(x))
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in before.parameters())
    masks = to_dense_(model)
    assert same(model, before)
    assert all(torch.equal(masks[n].flatten(1), replaced[n].mask()) for n in replaced)
    assert not any(isinstance(m, SparseLayer) for m in model)


def test_kept_zeros_survive_when_masks_are_given():
    model = network()
    mask = torch.zeros(12, 48, dtype=torch.bool)
    mask[3, 4:9] = True
    with torch.no_grad():
        model[4].weight[3, 5] = 0.0
    bias = model[4].bias.detach().clone()
    to_sparse_(model, {"4.weight": mask})
    assert model[4].weight_values.numel() == 5
    assert type(model[7]) is nn.Linear
    assert torch.equal(model[4].bias, bias)
    assert torch.equal(to_dense_(model)["4.weight"], mask)
    assert int((model[4].weight != 0).sum()) == 4


@pytest.mark.parametrize(
    "method",
    [
        StaticRandom(sparsity=0.6),
        StaticRandom(sparsity=0.9, repair=True, init="kaiming", exclude=("7.*",)),
        RigL(sparsity=0.5, steps=9, pattern="block 1x3"),
        GMP(sparsity=0.5, steps=9),
    ],
    ids=lambda m: m.name,
)
def test_a_method_stores_what_it_would_mask(method):
    masked, stored = network(), network()
    sparsifier = attach(masked, None, method)
    replaced = to_sparse_(stored, method)
    twin = attach(stored, None, method)
    assert sparsifier.masks.keys() == twin.masks.keys()
    assert all(torch.equal(m, twin.masks[n]) for n, m in sparsifier.masks.items())
    assert all(torch.equal(c.mask(), sparsifier.masks[n].flatten(1)) for n, c in replaced.items())
    to_dense_(stored)
    assert same(masked, stored)


def test_a_layer_that_stays_dense_may_be_held_whole():
    method = StaticRandom(sparsity=0.8, exclude=("7.*",))
    model, usual = network(), network()
    dense = model[7].weight.detach().clone()
    replaced = to_sparse_(model, method, whole=("7.*",))
    to_sparse_(usual, method)
    assert type(usual[7]) is nn.Linear
    assert replaced["7.weight"].density == 1.0
    assert torch.equal(model[7].weight, dense)
    sparsifier = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method)
    assert set(sparsifier.masks) == {"0.weight", "4.weight"}
    x = batches(1)[0][0]
    torch.testing.assert_close(model(x), usual(x))
    assert torch.equal(to_dense_(model)["7.weight"], torch.ones_like(dense, dtype=torch.bool))
    assert torch.equal(model[7].weight, dense)


def test_what_cannot_be_held_whole_is_told_and_nothing_changed():
    model = network()
    before = copy.deepcopy(model)
    for glob in ("fc*", "4.*", "1.*"):  # unknown, sparse already, no layer of the kind
        with pytest.raises(
            ValueError, match=rf"whole: '{glob}' matches none .*: 7.weight".replace("*", r"\*", 1)
        ):
            to_sparse_(model, StaticRandom(sparsity=0.8, exclude=("7.*",)), whole=(glob,))
    assert same(model, before)
    assert not any(isinstance(m, SparseLayer) for m in model)


def test_one_string_is_not_several_globs():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(
        ValueError, match=r"whole is a tuple of globs, got the string '2\.\*': write whole=\('2\.\*',\)"
    ):
        to_sparse_(model, StaticRandom(sparsity=0.8, exclude=("2.*",)), whole="2.*")
    assert type(model[0]) is nn.Linear


def test_modes_and_flags_move_along():
    model = network().eval()
    model[4].weight.requires_grad_(False)
    to_sparse_(model, StaticRandom(sparsity=0.5, include=("4.weight",)))
    assert not model[4].training
    assert not model[4].weight_values.requires_grad
    assert model[7].weight_values.requires_grad
    to_dense_(model)
    assert not model[4].training
    assert not model[4].weight.requires_grad


def test_one_layer_in_two_places_stays_one_layer():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    to_sparse_(model, {"0.weight": torch.eye(4, dtype=torch.bool)})
    assert model[0] is model[2]
    assert isinstance(model[0], SparseLinear)


def test_tied_weights_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    assert set(to_sparse_(model)) == {"2.weight"}
    assert model[1].weight is model[0].weight
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"no layer that could hold only its kept"):
        to_sparse_(tied)


def test_convolutions_without_a_sparse_form_are_left_alone():
    kinds = [{"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect", "padding": 1}]
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, **kind) for kind in kinds), nn.Conv2d(4, 4, 1))
    assert set(to_sparse_(model)) == {"3.weight"}


def test_subclasses_of_linear_are_left_alone():
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4))
    assert set(to_sparse_(model)) == {"1.weight"}
    assert type(model[0].out_proj) is not SparseLinear


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"1.weight": torch.ones(3, dtype=torch.bool)},
            r"masks are given for 1.weight; .* 0.weight, 4.weight, 7.weight",
        ),
        ({"4.weight": torch.ones(48, 12, dtype=torch.bool)}, r"4.weight must be boolean of shape \[12, 48\]"),
        ({"4.weight": torch.ones(12, 48)}, r"4.weight must be boolean .* got float32 \[12, 48\]"),
        ({}, "no layer that could hold"),
    ],
)
def test_masks_that_do_not_fit_change_nothing(masks, message):
    model = network()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        to_sparse_(model, masks)
    assert same(model, before)


def test_a_model_that_is_itself_the_layer_cannot_be_replaced():
    with pytest.raises(ValueError, match=r"SparseLinear.from_linear"):
        to_sparse_(nn.Linear(3, 3))


def test_a_loop_that_still_holds_its_last_loss_survives_shrinking():
    """The graph of the last loss is alive while the next one is made; the number of connections has changed
    between.
    """
    model = nn.Sequential(nn.Linear(6, 5))
    method = GMP(sparsity=0.8, steps=6, every=1)
    to_sparse_(model, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = attach(model, optimizer, method)
    loss = None
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 6)).sum() + (0 if loss is None else 0 * loss.item())
        loss.backward()
        optimizer.step()
    assert sparsifier.kept == 6
