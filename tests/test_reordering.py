"""Channels change places, and nobody notices."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from openwork.reordering import unordered
from openwork.tasks.gpt import gpt_small


def names(module, *inputs):
    return sorted(c.name for c in unordered(module, lambda: module(*inputs)))


class Gated(nn.Module):
    """A perceptron with a gate, a residual connection and a norm, as language models have it."""

    def __init__(self, bias=False):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.gate, self.up, self.down = (
            nn.Linear(6, 10, bias=bias), nn.Linear(6, 10, bias=bias), nn.Linear(10, 6, bias=bias),
        )  # fmt: skip

    def forward(self, x):
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


@pytest.mark.parametrize("bias", [False, True])
def test_both_sides_of_a_gate_move_with_what_reads_them(bias):
    torch.manual_seed(0)
    module, x = Gated(bias).double(), torch.randn(3, 4, 6).double()
    (channels,) = unordered(module, lambda: module(x))
    assert {m.name for m in channels.makers} >= {"gate.weight", "up.weight"}
    assert [r.name for r in channels.readers] == ["down.weight"]
    assert channels.channels == 10
    before, order = module(x), torch.randperm(10)
    weights = copy.deepcopy(module.state_dict())
    channels.reorder_(order)
    assert torch.equal(module.up.weight, weights["up.weight"][order])
    assert torch.equal(module.down.weight, weights["down.weight"][:, order])
    torch.testing.assert_close(module(x), before)
    channels.reorder_(order.argsort())
    assert all(torch.equal(p, weights[name]) for name, p in module.state_dict().items())
    with pytest.raises(ValueError, match="names each of them once"):
        channels.reorder_(torch.zeros(10, dtype=torch.int64))


def test_a_transformer_has_its_perceptrons():
    model = gpt_small(width=16, heads=2, depth=2).eval()
    tokens = torch.arange(20).view(2, 10)
    found = names(model, tokens)
    assert found == ["blocks.0.mlp.up.weight", "blocks.1.mlp.up.weight"]
    before = model(tokens)
    for channels in unordered(model, lambda: model(tokens)):
        channels.reorder_(torch.randperm(channels.channels, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(model(tokens), before, atol=1e-6, rtol=1e-5)


class Odd(nn.Module):
    """Where the order is tied, each in its own way."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 4), nn.Linear(4, 4), how

    def forward(self, x):
        h = self.a(x)
        match self.how:
            case "residual":
                h = h + x
            case "softmax":
                h = h.softmax(-1)
            case "index":
                h = torch.cat([h[..., 2:], h[..., :2]], -1)
            case "buffer":
                h = h * torch.arange(4.0)
            case "in place":
                h = h.relu_()
            case "seen":
                return self.b(h), h
            case "twice":
                h = self.a(h)
            case "normed":
                h = F.layer_norm(h, (4,))
            case "scaled":
                h = 2.0 * h.to(self.b.weight.dtype) + 1.0
        return self.b(h)


@pytest.mark.parametrize(
    "how", ["residual", "softmax", "index", "buffer", "in place", "seen", "twice", "normed"]
)
def test_what_else_looks_at_the_order_ties_it(how):
    assert names(Odd(how), torch.randn(2, 4)) == []


def test_numbers_do_not():
    assert names(Odd("scaled"), torch.randn(2, 4)) == ["a.weight"]


def test_gpt2_holds_weights_inputs_first():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=12, n_head=2, n_layer=1, vocab_size=11, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.arange(8).view(1, 8)
    found = unordered(model, lambda: model(tokens, use_cache=False).logits)
    assert [c.name for c in found] == ["transformer.h.0.mlp.c_fc.weight"]
    before = model(tokens).logits
    found[0].reorder_(torch.randperm(48, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(model(tokens).logits, before, atol=1e-5, rtol=1e-5)
