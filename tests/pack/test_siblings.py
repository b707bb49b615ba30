"""Layers that read the same tensor, as `pack_` finds and measures them."""

import copy

import pytest
import torch
from torch import Tensor, nn

import openwork as ow
from openwork.layouts.packed import PackedLinear
from openwork.layouts.siblings import Share
from openwork.pack import pack_, siblings
from openwork.pack.observed import observed, readers, samples_of
from openwork.timing import Latency
from tests.pack.test_conv import prefer


class Attention(nn.Module):
    """Query, key and value of one tensor, gate and up of another; one layer reads alone, one reads twice."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(48, 48), nn.Linear(48, 16), nn.Linear(48, 16, bias=False)
        self.mix = nn.Linear(80, 48)
        self.gate, self.up, self.act = nn.Linear(48, 96), nn.Linear(48, 96), nn.SiLU()
        self.down = nn.Linear(96, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(torch.cat([self.query(x), self.key(x), self.value(x)], -1))
        x = self.down(self.act(self.gate(x)) * self.up(x))
        return self.query(x)


class Once(Attention):
    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(torch.cat([self.query(x), self.key(x), self.value(x)], -1))
        return self.down(self.act(self.gate(x)) * self.up(x))


def model(kind: type[nn.Module] = Once) -> nn.Module:
    torch.manual_seed(3)
    net = kind().eval()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(torch.rand(layer.weight.shape) < 0.3)
    return net


def together(monkeypatch: pytest.MonkeyPatch, *, wins: bool) -> None:
    prefer(monkeypatch, "slices", "octets")
    lasts = {"apart": 2.0 if wins else 1.0, "together": 1.0 if wins else 2.0}
    monkeypatch.setattr(
        siblings, "latencies", lambda calls, **_: {name: Latency(lasts[name], 0, 0, 9, 0) for name in calls}
    )


def test_who_reads_the_same_tensor() -> None:
    x = torch.randn(2, 48)
    _, uses = observed(model(), x)
    assert readers(uses) == [["query", "key", "value"], ["gate", "up"]]
    _, uses = observed(model(Attention), x)
    assert readers(uses) == [["key", "value"], ["gate", "up"]]  # query is called twice
    assert uses["query"].calls == 2
    with torch.inference_mode():
        assert readers(observed(model(), torch.randn(2, 48))[1]) == readers(observed(model(), x)[1])


def test_samples_are_those_of_the_first_tensor() -> None:
    x = torch.zeros(3, 2)
    assert [samples_of(inputs) for inputs in (x, (1, x), {"a": None, "b": x}, torch.tensor(1.0), [])] == [
        3,
        3,
        3,
        1,
        1,
    ]


@pytest.mark.parametrize("kind", [Once, Attention])
def test_they_are_computed_together_where_that_is_faster(kind, monkeypatch) -> None:
    together(monkeypatch, wins=True)
    net, x = model(kind), torch.randn(1, 48)
    expected, state = net(x).detach(), net.state_dict().keys()
    decisions = pack_(net, x, cache=False)
    names = (
        [("query", "key", "value"), ("gate", "up")] if kind is Once else [("key", "value"), ("gate", "up")]
    )
    assert [told.layers for told in decisions.together] == names
    assert all(told.form == "together, slices" and told.batch == 1 for told in decisions.together)
    assert "gate, up, batch 1: together, slices, 1000.0000 ms (2000.0000 ms apart)" in str(decisions)
    for group in names:
        shares = [net.get_submodule(name).dispatch.by_batch[1] for name in group]
        assert all(isinstance(share, Share) and share.siblings is shares[0].siblings for share in shares)
    assert net.gate.activation == "silu"
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(copy.deepcopy(net)(x), expected, rtol=1e-4, atol=1e-4)
        assert net(torch.randn(4, 48)).shape == (4, 48)
    assert {name.replace("weight_values", "weight") for name in net.state_dict()} >= set(state)


def test_they_stay_apart_where_not(monkeypatch) -> None:
    together(monkeypatch, wins=False)
    net, x = model(), torch.randn(1, 48)
    decisions = pack_(net, x, cache=False)
    assert [told.form for told in decisions.together] == ["apart", "apart"]
    assert not any(
        isinstance(held, Share)
        for layer in net.modules()
        if isinstance(layer, PackedLinear)
        for held in layer.dispatch.by_batch.values()
    )


def test_of_several_samples_each_layer_keeps_its_own(monkeypatch) -> None:
    together(monkeypatch, wins=True)
    net, x = model(), torch.randn(1, 48)
    expected = net(x).detach()
    pack_(net, x, batches=(1, 6), cache=False)
    held = net.key.dispatch.by_batch
    assert isinstance(held[1], Share)
    assert not isinstance(held[6], Share)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert pack_(model(), torch.randn(6, 48), cache=False).together == ()


def test_measured_for_real_and_remembered(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPENWORK_CACHE", str(tmp_path))
    net, x = model(), torch.randn(1, 48)
    expected = net(x).detach()
    for _ in range(2):
        packed = copy.deepcopy(net)
        pack_(packed, x, seconds=0.01)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), expected, rtol=1e-4, atol=1e-4)


def test_packing_again_packs_what_was_packed(monkeypatch) -> None:
    together(monkeypatch, wins=True)
    net, x = model(), torch.randn(1, 48)
    expected = net(x).detach()
    for _ in range(3):
        ow.pack_(net, x, cache=False)
        with torch.no_grad():
            torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert net.gate.activation == "silu"
