"""Every use of a weight is seen, with the tokens it reads."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from openwork.dataflow import Reading, patches
from openwork.matrices import matrices, unseen
from openwork.weights import prunable


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [((3, 3), 1, 0, 1), ((3, 2), (2, 1), (1, 0), 1), ((3, 3), 1, "same", 2), ((1, 1), 2, "valid", 1)],
)
def test_patches_make_a_convolution_a_matrix_product(kernel, stride, padding, dilation, groups):
    x = torch.randn(3, 4, 9, 8)
    weight = torch.randn(6, 4, *kernel)
    expected = F.conv2d(x, weight, None, stride, padding, dilation)
    rows = patches(x, kernel, stride, padding, dilation) @ weight.flatten(1).T
    torch.testing.assert_close(rows.view(3, *expected.shape[2:], 6).permute(0, 3, 1, 2), expected)
    assert torch.equal(
        patches(x[0], kernel, stride, padding, dilation), patches(x[:1], kernel, stride, padding, dilation)
    )


def test_patches_in_one_and_three_dimensions():
    x, w = torch.randn(2, 3, 10), torch.randn(5, 3, 4)
    torch.testing.assert_close(
        (patches(x, (4,), 2, 1, 1) @ w.flatten(1).T).view(2, -1, 5).transpose(1, 2),
        F.conv1d(x, w, None, 2, 1),
    )
    x, w = torch.randn(2, 3, 5, 6, 4), torch.randn(5, 3, 2, 3, 2)
    torch.testing.assert_close(
        (patches(x, (2, 3, 2), 1, 0, 1) @ w.flatten(1).T).view(2, 4, 4, 3, 5).permute(0, 4, 1, 2, 3),
        F.conv3d(x, w),
    )


def read(model, *args, tokens=None):
    """What each matrix of a model reads in one call: name -> list of (rows, key)."""
    found = {}
    layers = [m for w in prunable(model) if not w.reason for m in matrices(w)]
    with Reading(
        layers, lambda m, rows, key: found.setdefault(m.name, []).append((rows.clone(), key)), tokens
    ):
        model(*args)
    return found


class Odd(nn.Module):
    """Uses one weight through ``F.linear``, one layer twice, and a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.twice = nn.Linear(4, 6), nn.Linear(4, 2, bias=False), nn.Linear(4, 4)
        self.conv = nn.Conv1d(4, 4, 3, groups=2, padding=1)

    def forward(self, x):
        y = self.conv(x.transpose(1, 2)).transpose(1, 2)
        self.q(y)
        F.linear(y, self.k.weight)
        return self.twice(self.twice(y))


def test_every_use_is_seen_and_sharing_is_found_by_the_tensor():
    model, x = Odd(), torch.randn(2, 5, 4)
    y = model.conv(x.transpose(1, 2)).transpose(1, 2)
    found = read(model, x)
    assert set(found) == {"q.weight", "k.weight", "twice.weight", "conv.weight[0]", "conv.weight[1]"}
    torch.testing.assert_close(found["q.weight"][0][0], y.reshape(-1, 4))
    assert found["q.weight"][0][1] == found["k.weight"][0][1] == found["twice.weight"][0][1]
    first, second = found["twice.weight"]
    assert first[1] != second[1]
    torch.testing.assert_close(second[0], model.twice(y).reshape(-1, 4))
    columns = patches(x.transpose(1, 2), (3,), 1, 1, 1)
    assert torch.equal(found["conv.weight[1]"][0][0], columns[:, 6:])
    assert found["conv.weight[0]"][0][1] != found["conv.weight[1]"][0][1]


def test_a_tensor_that_was_changed_in_place_is_another():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = x + 0
            self.a(x)
            return self.b(x.mul_(2))

    found = read(InPlace(), torch.ones(2, 3))
    assert found["a.weight"][0][1] != found["b.weight"][0][1]
    assert found["b.weight"][0][0].eq(2).all()


def test_freed_memory_is_not_taken_for_the_same_tensor():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(20))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    found = read(Chain(), torch.randn(4, 8))
    assert len({key for uses in found.values() for _, key in uses}) == 20


def test_padding_is_left_out_where_rows_are_tokens():
    model, x = Odd(), torch.randn(2, 5, 4)
    tokens = torch.ones(2, 5, dtype=torch.bool)
    tokens[0, 3:] = False
    y = model.conv(x.transpose(1, 2)).transpose(1, 2)
    found = read(model, x, tokens=tokens)
    torch.testing.assert_close(found["q.weight"][0][0], y[tokens])
    pooled = nn.Linear(4, 2)
    assert len(read(pooled, x[:, 0], tokens=tokens)["weight"][0][0]) == 2


class PairExperts(nn.Module):
    """Two fused experts, each of its own tokens, in the manner of Transformers."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, 5, 4))
        self.down = nn.Parameter(torch.randn(2, 4, 5))

    def forward(self, x, chosen):
        rows, out = x.reshape(-1, 4), torch.zeros(x.numel() // 4, 4)
        for e in torch.arange(2):
            (index,) = torch.where(chosen.flatten() == e)
            hidden = F.linear(rows[index], self.up[e]).relu()
            out.index_add_(0, index, F.linear(hidden, self.down[e]))
        return out.view_as(x)


def test_an_expert_reads_its_own_tokens_without_the_padding_among_them():
    model, x = PairExperts(), torch.randn(2, 5, 4)
    chosen = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 0, 1, 1]])
    tokens = torch.tensor([[True] * 5, [True, True, True, False, False]])
    found = read(model, x, chosen, tokens=tokens)
    for e in range(2):
        mine = x[(chosen == e) & tokens]
        torch.testing.assert_close(found[f"up[{e}]"][0][0], mine)
        torch.testing.assert_close(found[f"down[{e}]"][0][0], F.linear(mine, model.up[e]).relu())


def test_what_cannot_be_seen_says_why():
    reasons = {
        type(w.module).__name__: unseen(w)
        for m in (nn.LSTM(2, 3), nn.Linear(2, 2), nn.ConvTranspose2d(2, 3, 3))
        for w in prunable(m)
    }
    assert "fused operation" in reasons["LSTM"]
    assert reasons["Linear"] == ""
    assert "transposed convolution" in reasons["ConvTranspose2d"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_in_one_call_is_seen_from_both_ends(batch_first):
    attention = nn.MultiheadAttention(6, 2, batch_first=batch_first).eval()
    x = torch.randn(3, 5, 6)
    tokens = torch.ones(3, 5, dtype=torch.bool)
    tokens[1, 2:] = False
    q = x if batch_first else x.transpose(0, 1)
    with torch.no_grad():
        expected = attention(q, q, q)[0]
        found = read(attention, q, q, q, tokens=tokens)
        context = found["out_proj.weight"][0][0]
        out = attention.out_proj(context)
    torch.testing.assert_close(found["in_proj_weight"][0][0], x[tokens])
    torch.testing.assert_close(out, (expected if batch_first else expected.transpose(0, 1))[tokens])
    assert matrices(prunable(attention)[0])[0].bias is attention.in_proj_bias
    assert set(read(attention, q, q * 2, q, tokens=tokens)) == {"out_proj.weight"}
