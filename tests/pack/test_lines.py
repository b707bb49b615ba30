"""Code that calls sparse layers one after the other: chained where that is faster, and the same numbers everywhere else."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openwork.layouts.packed import PackedLinear
from openwork.pack import chains, pack_
from openwork.pack.lines import Line, lines, straighten_, unstraighten_
from openwork.timing import Latency
from tests.pack.test_conv import prefer, saved_and_loaded

WIDTHS = (20, 37, 30, 11)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.first, self.second, self.third = nn.Linear(a, b), nn.Linear(b, c), nn.Linear(c, d)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(torch.flatten(x, 1)))
        x = F.gelu(self.second(x), approximate="tanh")
        return torch.tanh(self.third(F.dropout(x, 0.3, self.training)))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Functional(), nn.Linear(11, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).sigmoid() + x


class Residual(Functional):
    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        return self.third(y) + y[:, :11]


class Depends(Functional):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.third(self.second(x)) if x.sum() > 0 else x


class Doubled(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(2 * F.relu(self.first(x))))


class Writes(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return self.third(F.relu(self.second(F.relu(self.first(x), inplace=True))))


def sparse(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    net = kind().eval()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(torch.rand(layer.weight.shape) < 0.3)
    return net


def packed(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch, *, faster: bool = True) -> nn.Module:
    prefer(monkeypatch, "csr")
    lasts = {"layers": 2.0, "chained": 1.0 if faster else 2.0}

    def measured(calls, **_):
        for call in calls.values():
            call()
        return {name: Latency(lasts[name], 0, 0, 9, 0) for name in calls}

    monkeypatch.setattr(chains, "latencies", measured)
    net = sparse(kind)
    net.decisions = pack_(net, torch.randn(128, 20), cache=False)
    return net


@pytest.mark.parametrize("kind", [Functional, Nested])
@pytest.mark.parametrize("batch", [1, 64, 100, 128])
def test_a_line_computes_what_the_code_does(kind, batch, monkeypatch) -> None:
    net, x = packed(kind, monkeypatch), torch.randn(batch, 20)
    told = net.decisions.chained
    assert told is not None
    assert (told.names, told.form) == (("",) if kind is Functional else ("body",), "chained")
    assert "chained, 1000.000 ms (2000.000 ms without)" in str(net.decisions)
    line = vars(net if kind is Functional else net.body)["forward"]
    assert isinstance(line, Line)
    with torch.no_grad():
        expected = sparse(kind)(x)
        for one in (net, copy.deepcopy(net), saved_and_loaded(net)):
            torch.testing.assert_close(one(x), expected, rtol=1e-4, atol=1e-5)
    inside = copy.deepcopy(net)
    copied = vars(inside if kind is Functional else inside.body)["forward"]
    assert copied.module is (inside if kind is Functional else inside.body)
    assert copied.steps[1] is copied.module.first


def test_activations_go_on_in_tiles(monkeypatch) -> None:
    net, seen = packed(Functional, monkeypatch), []
    original = PackedLinear.on_tiles
    monkeypatch.setattr(PackedLinear, "on_tiles", lambda *args: seen.append(args[1].dim()) or original(*args))
    with torch.no_grad():
        net(torch.randn(128, 20))
    assert seen == [3, 3, 3]


@pytest.mark.parametrize("kind", [Residual, Depends, Doubled, Writes])
def test_other_code_is_no_line(kind, monkeypatch) -> None:
    net = packed(kind, monkeypatch)
    assert net.decisions.chained is None
    assert "forward" not in vars(net)


def test_lines_that_are_not_faster_are_undone(monkeypatch) -> None:
    net = packed(Functional, monkeypatch, faster=False)
    assert net.decisions.chained.form == "layers"
    assert "forward" not in vars(net)


def test_the_code_is_called_where_a_line_does_not_apply(monkeypatch) -> None:
    net, x = packed(Functional, monkeypatch), torch.randn(128, 20)
    called, expected = [], sparse(Functional)(x)
    original = Functional.forward
    monkeypatch.setattr(Functional, "forward", lambda self, x: called.append(1) or original(self, x))
    with torch.no_grad():
        net(x)
        assert not called
        net.train()
        net(x)
        net.eval()
        assert len(called) == 1
        net.second = sparse(Functional).second
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
        assert len(called) == 2


def test_hooks_see_what_they_would(monkeypatch) -> None:
    net, x, seen = packed(Functional, monkeypatch), torch.randn(128, 20), []
    net.second.register_forward_hook(lambda _, args, y: seen.append((args[0].shape, y.shape)))
    with torch.no_grad():
        net(x)
    assert seen == [((128, 37), (128, 30))]


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Functional()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_a_hook_around_the_steps_is_called(monkeypatch) -> None:
    net, x, seen = packed(Wrapped, monkeypatch), torch.randn(128, 20), []
    assert isinstance(vars(net)["forward"], Line)
    assert net.decisions.chained.names == ("",)
    with torch.no_grad():
        expected = net(x)
        net.body.register_forward_hook(lambda _, args, y: seen.append(y.shape))
        torch.testing.assert_close(net(x), expected)
        assert seen == [(128, 11)]
        net.body.train()  # and so dropout draws
        assert not torch.equal(net(x), expected)


def test_undone_and_done_again(monkeypatch) -> None:
    net, x = packed(Functional, monkeypatch), torch.randn(64, 20)
    with torch.no_grad():
        expected = net(x)
        unstraighten_(net)
        assert "forward" not in vars(net)
        straighten_(lines(net))
        assert torch.equal(net(x), expected)
        pack_(net, x, cache=False)
        torch.testing.assert_close(net(x), expected)
