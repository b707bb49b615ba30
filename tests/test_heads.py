"""Values change places inside their heads, and nobody notices."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from openwork.heads import values
from openwork.tasks.gpt import gpt_small
from tests.hf.tiny import bert, gpt2, llama, neox, phi3


def tokens(samples, length):
    return torch.randint(4, 40, (samples, length), generator=torch.Generator().manual_seed(7))


def output(model, x):
    found = model(x)
    if isinstance(found, torch.Tensor):
        return found
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def small_gpt():
    return gpt_small(44, context=16, width=32, heads=4, depth=2).eval()


def eager():
    return llama(attn_implementation="eager")


MODELS = {
    "own": (small_gpt, "attention.qkv.weight", "attention.out.weight", 4, 1, 64),
    "gpt2": (gpt2, "attn.c_attn.weight", "attn.c_proj.weight", 4, 1, 48),
    "bert": (bert, "self.value.weight", "output.dense.weight", 4, 1, 0),
    "grouped queries": (llama, "v_proj.weight", "o_proj.weight", 2, 2, 0),
    "eager": (eager, "v_proj.weight", "o_proj.weight", 2, 2, 0),
    "fused and grouped": (phi3, "qkv_proj.weight", "o_proj.weight", 2, 2, 36),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_attention_computes_the_same(name):
    make, maker, reader, heads, sharing, first = MODELS[name]
    model, x = make(), tokens(3, 12)
    found = values(model, lambda: output(model, x))
    assert len(found) == 2
    model = model.double()
    before, weights = output(model, x), copy.deepcopy(model.state_dict())
    generator = torch.Generator().manual_seed(5)
    for attention in found:
        assert attention.name.endswith(maker)
        assert attention.readers[0].name.endswith(reader)
        assert len(attention.heads) == heads
        width = attention.heads[0].rows.numel()
        for h, head in enumerate(attention.heads):
            assert head.rows.tolist() == list(range(first + h * width, first + (h + 1) * width))
            assert head.columns.tolist() == [
                list(range((h * sharing + q) * width, (h * sharing + q + 1) * width)) for q in range(sharing)
            ]
        within = [torch.randperm(width, generator=generator) for _ in attention.heads]
        attention.reorder_(within)
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, weights[n])]
    assert len(moved) >= 4
    assert all(n.endswith((maker, reader, maker.replace("weight", "bias"))) for n in moved)
    torch.testing.assert_close(output(model, x), before, rtol=1e-10, atol=1e-12)
    for attention in found:
        with pytest.raises(ValueError, match="names each once"):
            attention.reorder_([torch.zeros(len(h.rows), dtype=torch.int64) for h in attention.heads])


def test_layers_that_make_one_head_after_another_are_left_alone():
    model = neox()
    assert values(model, lambda: output(model, tokens(2, 12))) == []


def test_half_precision_is_asked_as_well():
    model, x = llama(dtype=torch.bfloat16), tokens(2, 12)
    found = values(model, lambda: output(model, x))
    assert [len(attention.heads) for attention in found] == [2, 2]


def test_heads_that_attend_alike_are_told_apart():
    """Weights of zero attend to all tokens alike; asked with random queries and keys, their heads show."""
    model = small_gpt()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[:64] = 0
            block.attention.qkv.bias[:64] = 0
    found = values(model, lambda: model(tokens(2, 9)))
    assert [len(attention.heads) for attention in found] == [4, 4]


class Odd(nn.Module):
    """Attention of two heads whose values are not free, each in its own way."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.gain = nn.Parameter(1 + torch.rand(4))
        self.other = nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        if self.how == "gain":
            y = y * self.gain
        if self.how == "norm":
            y = F.layer_norm(y, (4,))
        y = y.transpose(1, 2).flatten(2)
        if self.how == "gate":
            y = y * x.sigmoid()
        if self.how == "mixed":
            y = y + y.flip(-1)
        if self.how == "read twice":
            return self.o(y) + self.other(y)
        if self.how == "returned":
            return self.o(y), v
        if self.how == "weight used elsewhere":
            return self.o(y) + self.v.weight.sum()
        return self.o(y)


@pytest.mark.parametrize(
    "how", ["gain", "norm", "gate", "mixed", "read twice", "returned", "weight used elsewhere"]
)
def test_where_a_channel_is_not_like_the_others_nothing_is_found(how):
    odd, plain = Odd(how).eval(), Odd("").eval()
    x = torch.randn(2, 7, 8)
    assert values(odd, lambda: odd(x)) == []
    (found,) = values(plain, lambda: plain(x))
    assert found.name == "v.weight"
    assert values(plain, lambda: plain(x), exclude=["v.weight"]) == []


def test_asking_changes_nothing():
    model = small_gpt()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    values(model, lambda: model(tokens(2, 9)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
