"""S2FT finds channels and heads in models of every kind, keeps only what its slice needs, and at share 1 is full fine-tuning."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork import S2FT, thaw_
from openwork.tasks.gpt import gpt_small
from openwork.thawing import Slice
from tests.hf.tiny import bert, gpt2, llama, mixtral, neox, phi3

ALL = {"down": 0.2, "up": 0.1, "out": 0.5, "value": 0.5}


def own():
    return gpt_small(44, context=16, width=24, heads=4, depth=2)


def tokens(seed=0):
    return torch.randint(4, 40, (3, 12), generator=torch.Generator().manual_seed(seed))


def loss(model, batch):
    out = model(input_ids=batch)
    if not hasattr(out, "logits"):
        return out.last_hidden_state.pow(3).mean()
    logits = out.logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.flatten())


@pytest.mark.parametrize(
    ("make", "shares", "wanted"),
    [
        (llama, ALL, {"mlp.down_proj": 8 * 24, "mlp.up_proj": 4 * 24, "o_proj": 12 * 24, "v_proj": 6 * 24}),
        (
            gpt2,
            {"down": 0.1, "up": 0.1, "out": 0.25, "value": 0.25},
            {"mlp.c_proj": 10 * 24, "mlp.c_fc": 10 * 24, "attn.c_proj": 6 * 24, "attn.c_attn": 6 * 24},
        ),
        (phi3, ALL, {"mlp.down_proj": 8 * 24, "gate_up_proj": 4 * 24, "o_proj": 12 * 24, "qkv_proj": 6 * 24}),
        (neox, {"value": 0.5, "out": 0.5}, {"query_key_value": 12 * 24, "attention.dense": 12 * 24}),
        (mixtral, {"down": 0.1, "out": 0.25}, {"experts.down_proj": 3 * 4 * 24, "o_proj": 6 * 24}),
        (
            bert,
            ALL,
            {
                "output.dense": 8 * 24,
                "intermediate.dense": 4 * 24,
                "attention.output.dense": 12 * 24,
                "value": 12 * 24,
            },
        ),
    ],
    ids=["llama", "gpt2", "phi3", "neox", "mixtral", "bert"],
)
def test_channels_and_heads_of_transformers(make, shares, wanted):
    model, dense = make(), make()
    part = thaw_(model, S2FT(shares=shares))
    layers = len(part.weights) // len(wanted)
    assert layers == 2
    assert part.trainable == 2 * sum(wanted.values())
    loss(model, tokens()).backward()
    loss(dense, tokens()).backward()
    for name, weight in part.weights.items():
        assert isinstance(weight.part, Slice)
        torch.testing.assert_close(
            weight.values.grad, weight.part.take(dense.get_parameter(name).grad), rtol=1e-4, atol=1e-6
        )
    if "value" in shares and make is llama:  # whole heads of 6 columns
        index = part.weights["model.layers.0.self_attn.o_proj.weight"].part.index
        assert all(int(i) % 6 == j % 6 for j, i in enumerate(index))


def test_the_models_of_this_library():
    part = thaw_(gpt_small(20, context=8, width=16, heads=4, depth=2), S2FT(shares=ALL))
    assert {name.split(".", 2)[2] for name in part.weights} == {
        "mlp.down.weight",
        "mlp.up.weight",
        "attention.out.weight",
        "attention.qkv.weight",
    }


def values_of(model, x):
    """What each attention of a model mixes, ``[heads, tokens, width]`` of the first sample, in the order of the heads."""
    seen, plain = [], torch.nn.functional.scaled_dot_product_attention

    def watch(query, key, value, *args, **kwargs):
        seen.append(value.detach()[0])
        return plain(query, key, value, *args, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = watch
    try:
        with torch.no_grad():
            model(x)
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain
    return seen


@pytest.mark.parametrize(
    ("make", "fused"),
    [(gpt2, "attn.c_attn"), (phi3, "qkv_proj"), (neox, "query_key_value"), (own, "attention.qkv")],
)
def test_of_a_fused_matrix_only_values_are_trained(make, fused):
    """The rows that S2FT trains are those of whole heads' values, and of the same heads as the columns of the last matrix."""
    model, x = make(), tokens()
    part = thaw_(model, S2FT(shares={"value": 0.5, "out": 0.5}, seed=2))
    before = values_of(model, x)
    (first,) = (w for n, w in part.weights.items() if fused in n and ("0." in n))
    (last,) = (w for n, w in part.weights.items() if fused not in n and ("0." in n))
    width = before[0].shape[-1]
    columns = last.part.index.view(-1, width)
    with torch.no_grad():
        first.values += torch.randn(first.values.shape)
    after = values_of(model, x)
    changed = (after[0] - before[0]).abs().amax(1) > 1e-6  # [heads, width]
    assert bool((changed.all(1) == changed.any(1)).all())  # whole heads
    heads = changed.any(1).nonzero().flatten().tolist()
    if make is phi3:  # two sets of values for four heads, chosen by themselves
        assert len(heads) in (1, 2)
        assert first.values.shape == (6, 24)
    else:
        assert heads == [int(c[0]) // width for c in columns]


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0]


def test_multihead_attention():
    torch.manual_seed(0)
    model = Attending()
    part = thaw_(model, S2FT(shares={"value": 0.34, "out": 0.34}))
    rows, columns = (part.weights[f"inner.{n}"].part.index for n in ("in_proj_weight", "out_proj.weight"))
    assert rows.tolist() == (24 + columns).tolist()
    assert len(rows) == 4


def test_a_gate_and_what_it_gates_in_one_matrix():
    part = thaw_(phi3(), S2FT(shares={"down": 0.2, "up": 0.2}, seed=3))
    for layer in range(2):
        down, up = (
            part.weights[f"model.layers.{layer}.mlp.{n}.weight"].part.index
            for n in ("down_proj", "gate_up_proj")
        )
        assert up.tolist() == (40 + down).tolist()  # the half that is gated


def test_experts_that_are_held_inputs_first():
    part = thaw_(mixtral_transposed(), S2FT(shares={"down": 0.25}))
    index = part.weights["model.layers.0.mlp.experts.down_proj"].part
    assert index.axis == 1  # where such experts have their inputs
    with pytest.raises(ValueError, match="gate_up_proj holds its experts inputs first"):
        thaw_(mixtral_transposed(), S2FT(shares={"up": 0.25}))


def mixtral_transposed():
    model = mixtral()
    for layer in model.model.layers:
        layer.mlp.experts.is_transposed = True
    return model


def test_fused_matrices_that_nobody_can_take_apart():
    attention = nn.ModuleDict({"c_attn": nn.Linear(12, 36), "other": nn.Linear(12, 12)})
    model = nn.ModuleDict({"h": nn.ModuleDict({"attn": attention})})
    with pytest.raises(ValueError, match="makes queries and keys as well, and how many is told by"):
        thaw_(model, S2FT(shares={"value": 0.5}, head=4))
    attention["c_proj"] = nn.Linear(20, 12)
    with pytest.raises(ValueError, match="36 outputs, which are not 20 queries, as h"):
        thaw_(model, S2FT(shares={"value": 0.5}, head=4))


def test_both_matrices_of_a_perceptron_choose_the_same_channels():
    part = thaw_(llama(), S2FT(shares={"down": 0.2, "up": 0.1}, seed=3))
    for layer in range(2):
        down, up = (
            set(part.weights[f"model.layers.{layer}.mlp.{n}_proj.weight"].part.index.tolist())
            for n in ("down", "up")
        )
        assert len(down) == 8
        assert len(up) == 4
        assert up < down
    indices = [part.weights[f"model.layers.{i}.mlp.down_proj.weight"].part.index.tolist() for i in range(2)]
    assert indices[0] != indices[1]


@pytest.mark.parametrize("select", ["largest", "smallest"])
def test_channels_by_their_norm(select):
    model = llama()
    norms = model.model.layers[0].mlp.down_proj.weight.detach().square().sum(0)
    part = thaw_(model, S2FT(shares={"down": 0.25}, select=select))
    expected = norms.sort(descending=select == "largest").indices[:10].sort().values
    assert part.weights["model.layers.0.mlp.down_proj.weight"].part.index.tolist() == expected.tolist()


class Trained:
    """What backward keeps of each tensor, in numbers."""

    def __init__(self, run):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            self.result = run()
        self.sizes = [t.numel() for t in kept]


def test_of_the_inputs_only_the_slice_is_kept():
    model = nn.Sequential(nn.Linear(32, 200), nn.ReLU(), nn.Linear(200, 32))
    thaw_(model, S2FT(names={"down": ("2.weight",)}, shares={"down": 0.05}))
    x = torch.randn(64, 32)
    sizes = Trained(lambda: model(x)).sizes
    assert 64 * 10 in sizes  # the ten columns that are trained
    assert max(sizes) <= max(64 * 10, 32 * 200)  # no activation of 200 channels


def test_a_share_of_one_is_full_fine_tuning_of_those_matrices():
    def net():
        g = torch.Generator().manual_seed(0)
        model = nn.Sequential(nn.Linear(9, 17), nn.Tanh(), nn.Linear(17, 5)).double()
        for p in model.parameters():
            p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) / 4
        return model

    results = []
    for whole in (False, True):
        model = net()
        if whole:
            part = thaw_(
                model,
                S2FT(names={"down": ("2.weight",), "up": ("0.weight",)}, shares={"down": 1.0, "up": 1.0}),
            )
            trained = list(part.parameters())
        else:
            trained = [model[2].weight, model[0].weight]
        optimizer = torch.optim.AdamW(trained, lr=0.01)
        for seed in range(6):
            g = torch.Generator().manual_seed(seed)
            x = torch.randn(8, 9, generator=g, dtype=torch.float64)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        if whole:
            part.merge_()
        results.append(model.state_dict())
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=1e-10, atol=1e-12)


def test_it_works_through_checkpointing_and_autocast():
    model, plain = llama(), llama()
    model.activation_checkpointing_enable()
    parts = [thaw_(m, S2FT(shares={"down": 0.1, "up": 0.1})) for m in (model, plain)]
    for m in (model.train(), plain.train()):
        with torch.autocast("cpu", torch.bfloat16):
            loss(m, tokens()).backward()
    for p, q in zip(*(part.parameters() for part in parts), strict=True):
        assert torch.equal(p.grad, q.grad)
        assert p.grad.abs().sum() > 0


def test_a_model_whose_channels_were_pruned():
    model = llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, :20] = 0.0
    part = thaw_(model, S2FT(shares={"down": 0.5}))
    optimizer = torch.optim.AdamW(part.parameters(), lr=0.1)
    for seed in range(3):
        optimizer.zero_grad()
        loss(model, tokens(seed)).backward()
        optimizer.step()
    part.merge_()
    for layer in model.model.layers:
        assert not layer.mlp.down_proj.weight[:, :20].any()


def test_heads_that_nobody_knows():
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    with pytest.raises(ValueError, match=r"nothing says how wide a head of 1.weight is"):
        thaw_(model, S2FT(shares={"out": 0.5}, names={"out": ("1.weight",)}))
    with pytest.raises(ValueError, match="no multiple of head=5"):
        thaw_(model, S2FT(shares={"out": 0.5}, names={"out": ("1.weight",)}, head=5))
    with pytest.raises(ValueError, match="no weight is called as the value matrix"):
        thaw_(model, S2FT(shares={"value": 0.5}))
    assert ow.S2FT is S2FT
