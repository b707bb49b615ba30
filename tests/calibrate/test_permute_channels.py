"""Channels in a better order: the model computes the same, and n:m keeps more."""

import copy

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.calibrate.ria import RIA
from openwork.patterns import NM
from tests.calibrator.stages import gpt, weights, windows


def logits(model):
    return torch.cat([model(batch) for batch in windows()])


def test_the_model_computes_the_same_with_more_of_the_score_kept():
    model, dense = gpt(), gpt()
    found = ow.sparsify_(model, ow.PermuteChannels(), data=windows())
    torch.testing.assert_close(logits(model), logits(dense), atol=1e-5, rtol=1e-4)
    for i in range(3):
        said = found.parts[f"blocks.{i}"]
        (name,) = said["permuted"]
        gain = said["permuted"][name]
        assert name == "mlp.up.weight"
        assert gain["retained after"] > gain["retained before"]
        order = gain["order"]
        assert not torch.equal(order, torch.arange(len(order)))
        assert torch.equal(model.blocks[i].mlp.up.weight, dense.blocks[i].mlp.up.weight[order])
        assert torch.equal(model.blocks[i].mlp.up.bias, dense.blocks[i].mlp.up.bias[order])
        assert torch.equal(model.blocks[i].mlp.down.weight, dense.blocks[i].mlp.down.weight[:, order])
        assert said["in their order"] == ["attention.out.weight", "attention.qkv.weight", "mlp.up.weight"]
    assert all(bool(mask.all()) for mask in found.masks.values())


def test_what_follows_prunes_the_permuted_model_and_keeps_more_there():
    def kept(model, recipe):
        found = ow.sparsify_(model, recipe, data=windows())
        assert all(NM(2, 4).allows(mask) for mask in found.masks.values())
        return found

    before, after = gpt(), gpt()
    plain, permuted = (
        kept(before, RIA(pattern="2:4")),
        kept(after, [ow.PermuteChannels(), RIA(pattern="2:4")]),
    )
    assert plain.plan.kept == permuted.plan.kept
    dense = gpt()
    inside = permuted.parts["blocks.0"]["permuted"]["mlp.up.weight"]["order"]
    mask = permuted.masks["blocks.0.mlp.down.weight"]
    assert torch.equal(after.blocks[0].mlp.down.weight, dense.blocks[0].mlp.down.weight[:, inside] * mask)


def test_zeros_that_were_there_move_with_their_channels():
    model = gpt()
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[:, 5] = 0
        model.blocks[1].mlp.up.weight[7] = 0
    before = copy.deepcopy(model)
    found = ow.sparsify_(model, ow.PermuteChannels(exchanges=0), data=windows())
    torch.testing.assert_close(logits(model), logits(before), atol=1e-5, rtol=1e-4)
    order = found.parts["blocks.1"]["permuted"]["mlp.up.weight"]["order"].tolist()
    assert not bool(found.masks["blocks.1.mlp.down.weight"][:, order.index(5)].any())
    assert not bool(found.masks["blocks.1.mlp.up.weight"][order.index(7)].any())
    assert {n: int(m.sum()) for n, m in found.masks.items()} == {
        n: int((w != 0).sum()) for n, w in before.named_parameters() if n in found.masks
    }


def test_masks_to_begin_with_move_too():
    recipe = [ow.Magnitude(sparsity=0.5), ow.PermuteChannels(), ow.Refit()]
    model = gpt()
    found = ow.sparsify_(model, recipe, data=windows())
    alone = ow.sparsify_(gpt(), ow.Magnitude(sparsity=0.5, exclude=("head.*",))).masks
    order = found.parts["blocks.2"]["permuted"]["mlp.up.weight"]["order"]
    name = "blocks.2.mlp.down.weight"
    assert torch.equal(found.masks[name], alone[name][:, order])
    assert torch.equal(model.blocks[2].mlp.down.weight != 0, found.masks[name])


def test_a_kill_costs_one_block(tmp_path):
    recipe = [ow.PermuteChannels(), RIA(pattern="2:4")]
    straight, again = gpt(), gpt()
    ow.sparsify_(straight, recipe, data=windows(), checkpoint=tmp_path)
    (tmp_path / "block-0002.pt").unlink()
    found = ow.sparsify_(again, recipe, data=windows(), checkpoint=tmp_path)
    assert all(torch.equal(w, weights(straight)[n]) for n, w in weights(again).items())
    assert "permuted" in found.parts["blocks.0"]


def test_where_every_order_is_tied_nothing_happens_and_the_layers_are_named():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    before = copy.deepcopy(model.state_dict())
    found = ow.sparsify_(
        model, [ow.PermuteChannels(), RIA(pattern="2:4")], data=[torch.randn(9, 8)], blocks="whole"
    )
    assert found.parts[""]["permuted"] == {}
    assert found.parts[""]["in their order"] == ["0.weight", "2.weight"]
    assert all(torch.equal(before[n][w != 0], w[w != 0]) for n, w in model.state_dict().items())
    with pytest.raises(ValueError, match="matters for n:m"):
        ow.PermuteChannels(pattern="unstructured")


def test_channels_stay_where_one_of_their_layers_is_excluded():
    model, dense = gpt(), gpt()
    recipe = [
        ow.Magnitude(sparsity=0.5),
        ow.PermuteChannels(exclude=("*.up.*",)),
        ow.Refit(exclude=("*.up.*",)),
    ]
    found = ow.sparsify_(model, recipe, data=windows())
    assert found.parts["blocks.0"]["permuted"] == {}
    assert "mlp.down.weight" in found.parts["blocks.0"]["in their order"]
    for name, mask in found.masks.items():
        if ".up." in name:
            assert torch.equal(weights(model)[name], weights(dense)[name] * mask)
