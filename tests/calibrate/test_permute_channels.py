"""Channels in a better order: the model computes the same, and n:m keeps more."""

import copy

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.calibrate.ria import RIA
from openwork.patterns import NM
from tests.calibrator.stages import gpt, weights, windows
from tests.hf.tiny import bert, gpt2, llama, phi3


def logits(model):
    return torch.cat([model(batch) for batch in windows()])


def test_the_model_computes_the_same_with_more_of_the_score_kept():
    model, dense = gpt(), gpt()
    found = ow.sparsify_(model, ow.PermuteChannels(), data=windows())
    torch.testing.assert_close(logits(model), logits(dense), atol=1e-5, rtol=1e-4)
    for i in range(3):
        said = found.parts[f"blocks.{i}"]
        assert sorted(said["permuted"]) == ["attention.qkv.weight", "mlp.up.weight"]
        assert all(g["retained after"] > g["retained before"] for g in said["permuted"].values())
        gain = said["permuted"]["mlp.up.weight"]
        assert gain["retained after"] > gain["retained before"]
        order = gain["order"]
        assert not torch.equal(order, torch.arange(len(order)))
        assert torch.equal(model.blocks[i].mlp.up.weight, dense.blocks[i].mlp.up.weight[order])
        assert torch.equal(model.blocks[i].mlp.up.bias, dense.blocks[i].mlp.up.bias[order])
        assert torch.equal(model.blocks[i].mlp.down.weight, dense.blocks[i].mlp.down.weight[:, order])
        assert said["in their order"] == ["attention.qkv.weight", "mlp.up.weight"]
        gain, old, new = (
            said["permuted"]["attention.qkv.weight"],
            dense.blocks[i].attention,
            model.blocks[i].attention,
        )
        order, rows = gain["order"], gain["rows"]
        assert torch.equal(rows[: 2 * len(order)], torch.arange(2 * len(order)))  # queries and keys stay
        assert torch.equal(rows[2 * len(order) :], 2 * len(order) + order)
        assert torch.equal(order.view(old.heads, -1).sort().values.flatten(), torch.arange(len(order)))
        assert torch.equal(new.qkv.weight, old.qkv.weight[rows])
        assert torch.equal(new.qkv.bias, old.qkv.bias[rows])
        assert torch.equal(new.out.weight, old.out.weight[:, order])
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


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (llama, "model.layers.*"),
        (phi3, "model.layers.*"),
        (bert, "encoder.layer.*.[dvkq]*[ey].weight"),
        (gpt2, "transformer.h.*.c_*.weight"),
    ],
    ids=["llama", "phi3", "bert", "gpt2"],
)
def test_transformers_compute_the_same(make, blocks):
    """Against the network as it was, in float64; two heads share their values in the first two."""
    options = {"hidden_size": 32} if make is llama else {}
    model = make(**options)
    dense = copy.deepcopy(model).double()
    data = [
        {"input_ids": torch.randint(4, 40, (2, 11), generator=torch.Generator().manual_seed(i))}
        for i in range(2)
    ]
    with torch.no_grad():
        found = ow.sparsify_(model, ow.PermuteChannels(pattern="1:2", include=(blocks,)), data=data)
        model = model.double()
        for batch in data:
            after, before = model(**batch), dense(**batch)
            name = "logits" if hasattr(before, "logits") else "last_hidden_state"
            torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=1e-10, atol=1e-12)
    said = [parts["permuted"] for parts in found.parts.values() if "permuted" in parts]
    assert len(said) == 2
    for block in said:
        assert len(block) == (
            1 if make is phi3 else 2
        )  # a gate and what it gates, made in one layer, keep their order
        (attention,) = (gain for name, gain in block.items() if "rows" in gain)
        assert attention["retained after"] > attention["retained before"]
    if make is llama:  # the two heads of a group have one order
        order = attention["order"].view(2, 2, 8) % 8
        assert torch.equal(order[:, 0], order[:, 1])


def test_heads_narrower_than_a_group_keep_their_order():
    found = ow.sparsify_(
        llama(),
        ow.PermuteChannels(include=("model.layers.*",)),
        data=[{"input_ids": torch.randint(4, 40, (2, 9))}],
    )
    (said, _) = (parts for parts in found.parts.values() if "permuted" in parts)
    assert list(said["permuted"]) == ["mlp.gate_proj.weight"]
    assert "self_attn.o_proj.weight" in said["in their order"]


def test_zeros_that_were_there_move_with_their_channels():
    model = gpt()
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[:, 5] = 0
        model.blocks[1].mlp.up.weight[7] = 0
        model.blocks[1].attention.out.weight[:, 3] = 0
        model.blocks[1].attention.qkv.weight[-2] = 0
    before = copy.deepcopy(model)
    found = ow.sparsify_(model, ow.PermuteChannels(exchanges=0), data=windows())
    torch.testing.assert_close(logits(model), logits(before), atol=1e-5, rtol=1e-4)
    order = found.parts["blocks.1"]["permuted"]["mlp.up.weight"]["order"].tolist()
    assert not bool(found.masks["blocks.1.mlp.down.weight"][:, order.index(5)].any())
    assert not bool(found.masks["blocks.1.mlp.up.weight"][order.index(7)].any())
    attention = found.parts["blocks.1"]["permuted"]["attention.qkv.weight"]
    assert not bool(
        found.masks["blocks.1.attention.out.weight"][:, attention["order"].tolist().index(3)].any()
    )
    row = attention["rows"].tolist().index(len(attention["rows"]) - 2)
    assert not bool(found.masks["blocks.1.attention.qkv.weight"][row].any())
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
    assert list(found.parts["blocks.0"]["permuted"]) == ["attention.qkv.weight"]
    assert "mlp.down.weight" in found.parts["blocks.0"]["in their order"]
    for name, mask in found.masks.items():
        if ".up." in name:
            assert torch.equal(weights(model)[name], weights(dense)[name] * mask)
