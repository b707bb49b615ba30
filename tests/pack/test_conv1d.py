"""The `Conv1D` of Transformers through `pack_`: the numbers, the parameters and the files of before."""

import copy

import pytest
import torch
from torch import Tensor, nn

from openwork.files import load, save
from openwork.layouts.packed_conv1d import PackedConv1D, is_conv1d
from openwork.pack import pack_
from tests.pack.test_conv import prefer, saved_and_loaded


class Conv1D(nn.Module):
    """As transformers.pytorch_utils has it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.randn(nf))
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mix = Conv1D(60, 20), Conv1D(20, 20)
        self.up, self.act, self.down = Conv1D(40, 20), nn.ReLU(), Conv1D(20, 40)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attention(x).split(20, -1)
        x = self.mix(x=torch.softmax(q @ k.mT, -1) @ v)
        return self.down(self.act(self.up(x)))


def block(seed: int = 0) -> Block:
    torch.manual_seed(seed)
    model = Block().eval()
    with torch.no_grad():
        for layer in model.modules():
            if is_conv1d(layer):
                layer.weight.mul_(torch.rand(layer.weight.shape) < 0.3)
    return model


@pytest.mark.parametrize("form", ["slices", "octets", "csr", "dense onednn"])
def test_it_computes_what_it_did(form: str, monkeypatch, tmp_path) -> None:
    prefer(monkeypatch, form, "csr")
    model, x = block(), torch.randn(1, 1, 20)
    expected, state = model(x).detach(), {name: t.clone() for name, t in model.state_dict().items()}
    decisions = pack_(model, x, cache=False)
    assert [row.shape for row in decisions] == [(60, 20), (20, 20), (40, 20), (20, 40)]
    assert all(row.layout == form for row in decisions)
    assert all(
        isinstance(layer, PackedConv1D) for layer in (model.attention, model.mix, model.up, model.down)
    )
    assert form in repr(model.up)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        for other in (copy.deepcopy(model), saved_and_loaded(model)):
            assert torch.equal(other(x), model(x))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    save(model, tmp_path / "m.safetensors")
    plain = load(tmp_path / "m.safetensors", into=block(1))
    torch.testing.assert_close(plain(x), expected)


def test_another_state_is_computed_with(monkeypatch) -> None:
    prefer(monkeypatch, "slices", "octets")
    model, other, x = block(), block(1), torch.randn(3, 1, 20)
    pack_(model, x[:1], cache=False)
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-4)
    pack_(model, x[:1], cache=False)  # and packed again
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-4)


def test_what_stays_dense_stays_what_it_is(monkeypatch) -> None:
    prefer(monkeypatch, "dense")
    model = block()
    pack_(model, torch.randn(1, 1, 20), cache=False)
    assert type(model.up) is Conv1D


def test_no_gradients(monkeypatch) -> None:
    prefer(monkeypatch, "octets")
    model = block()
    pack_(model, torch.randn(1, 1, 20), cache=False)
    with pytest.raises(RuntimeError, match="gives no gradients"):
        model.up(torch.randn(1, 20, requires_grad=True))


def test_the_one_of_transformers_is_known() -> None:
    real = pytest.importorskip("transformers.pytorch_utils").Conv1D(12, 8)
    assert is_conv1d(real)
    assert not is_conv1d(nn.Conv1d(3, 3, 1))
    assert not is_conv1d(nn.Linear(3, 3))
