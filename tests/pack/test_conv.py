"""Packed convolutions: the numbers of the model before, its state, and choices that can be trusted."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import openwork.pack.choice as choice
from openwork.files import load, save
from openwork.layouts.conv import SparseConv2d, convolution_of
from openwork.layouts.conv_layout import (
    CONV_LAYOUTS,
    BlockPixelsConv,
    ImagesConv,
    PixelsConv,
    TorchConv,
    sharing_channels,
)
from openwork.layouts.packed_conv import DenseConv2d, FoldedBatchNorm2d, PackedConv2d, connections_of, folded
from openwork.pack import pack_
from openwork.pack.behind import Behind, behind
from openwork.pack.conv import ConvTrial
from openwork.storage import to_sparse_
from openwork.timing import Latency

pytestmark = pytest.mark.filterwarnings("ignore:.*mkldnn.*")


class Residual(nn.Module):
    """Two convolutions and a shortcut, as residual networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.shortcut = nn.Conv2d(4, 6, 1, 2)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.last((y + self.shortcut(x)).mean((2, 3)))


def residual(sparsity: float = 0.8, sharing: int = 1) -> Residual:
    """With so many output channels that share their taps."""
    generator = torch.Generator().manual_seed(1)
    model = Residual().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5 * ("norm" in name))
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                scores = torch.rand(module.weight.shape, generator=generator)[::sharing]
                module.weight.mul_((scores >= sparsity).repeat_interleave(sharing, 0))
    return model


def saved_and_loaded(model: nn.Module) -> nn.Module:
    """As torch.save and torch.load carry a whole model over."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def prefer(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the contest be won by the first of these forms that suits."""

    def contest(trial: choice.Trial[object], seconds: float) -> dict[str, Latency]:
        times = {form: 1.0 + [*names, form].index(form) for form in trial.forms()}
        return {form: Latency(time, time, time, 9, 0) for form, time in times.items()}

    monkeypatch.setattr(choice.Trial, "contest", contest)


@pytest.mark.parametrize("form", [cls.name for cls in CONV_LAYOUTS])
@pytest.mark.parametrize("stored", [False, True])
def test_every_form_computes_the_model_before(form: str, stored: bool, monkeypatch) -> None:
    prefer(monkeypatch, form, "csr pixels")
    model, x = residual(sharing=2 if "blocks" in form else 1), torch.randn(7, 4, 9, 11)
    expected, state = model(x).detach(), {k: v.clone() for k, v in model.state_dict().items()}
    if stored:
        to_sparse_(model)
        state = {k: v.clone() for k, v in model.state_dict().items()}
    decisions = pack_(model, x, cache=False)
    assert {row.layout for row in decisions if row.layer != "last"} == {form}
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-3)
        assert model(x[:1]).shape == (1, 3)
        for other in (copy.deepcopy(model), saved_and_loaded(model)):
            assert torch.equal(other(x), model(x))
    assert isinstance(model.bn1, FoldedBatchNorm2d)
    assert isinstance(model.relu, nn.Identity)
    packed = model.state_dict()
    for name in state.keys() & packed.keys():
        assert torch.equal(state[name], packed[name])


def test_packing_for_real_is_right_and_says_what_it_did() -> None:
    model, x = residual(), torch.randn(3, 4, 8, 8)
    expected = model(x).detach()
    decisions = pack_(model, x, seconds=0.02, cache=False, batches=(1, 3))
    assert {(row.layer, row.batch) for row in decisions} == {
        (name, batch) for name in ("conv1", "conv2", "shortcut", "last") for batch in (1, 3)
    }
    assert "6x4x3x3" in str(decisions)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("form", ["csr pixels", "dense onednn"])
def test_packing_again_packs_what_was_packed(form, monkeypatch) -> None:
    prefer(monkeypatch, form, "csr pixels")
    model, x = residual(), torch.randn(2, 4, 8, 8)
    expected = model(x).detach()
    for _ in range(3):
        pack_(model, x, cache=False)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-3)


def test_state_that_is_loaded_later_is_computed_with(monkeypatch) -> None:
    prefer(monkeypatch, "csr pixels")
    model, other, x = residual(), residual(0.5), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        other.bn1.running_var.mul_(3)
    pack_(model, x, cache=False)
    to_sparse_(other, {f"{n}.weight": getattr(other, n).weight != 0 for n in ("conv1", "conv2", "shortcut")})
    state = other.state_dict() | {n: v for n, v in model.state_dict().items() if n.startswith("last")}
    model.load_state_dict(state)
    other.load_state_dict({n: v for n, v in state.items() if n.startswith("last")}, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x), rtol=1e-4, atol=1e-3)


def test_files_know_nothing_of_packing(monkeypatch, tmp_path) -> None:
    prefer(monkeypatch, "csr pixels")
    model, x = residual(), torch.randn(2, 4, 8, 8)
    expected = model(x).detach()
    pack_(model, x, cache=False)
    assert isinstance(model.conv1, PackedConv2d)
    save(model, tmp_path / "m.safetensors")
    plain = residual()
    load(tmp_path / "m.safetensors", into=plain)
    assert type(plain.conv1) is SparseConv2d
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-3)


def test_gradients_are_refused(monkeypatch) -> None:
    prefer(monkeypatch, "csr pixels")
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    pack_(model, torch.randn(1, 2, 5, 5), cache=False)
    with pytest.raises(RuntimeError, match="gives no gradients"):
        model(torch.randn(1, 2, 5, 5, requires_grad=True))


def test_folding_is_the_norm_and_keeps_zeros() -> None:
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4).eval()
    with torch.no_grad():
        for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(4) + 0.2)
        conv.weight[0] = 0
    topology, values, bias = folded(connections_of(conv), norm)
    x = torch.randn(2, 3, 6, 6)
    weight = topology.dense(values).view(4, 3, 3, 3)
    torch.testing.assert_close(nn.functional.conv2d(x, weight, bias), norm(conv(x)), rtol=1e-5, atol=1e-5)
    assert topology.kept == 81


def test_what_stands_behind_is_seen_only_where_nobody_else_looks() -> None:
    found = behind(residual())
    assert found["conv1"] == Behind("bn1", "relu", "relu")
    assert found["conv2"] == Behind("bn2")
    assert "shortcut" not in found

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.relu(self.norm(y)) + y

    assert "conv" not in behind(Twice())

    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if x.sum() > 0 else x

    assert behind(Untraceable())["body.0"] == Behind("body.1", "body.2", "relu")


def test_forms_that_do_not_suit_are_left_out() -> None:
    conv = nn.Conv2d(3, 4, 3)
    trial = ConvTrial(SparseConv2d(3, 4, 3, kept=5).convolution, connections_of(conv), (2, 6, 6))
    assert ImagesConv.name not in trial.forms()
    assert trial.forms()[PixelsConv.name] is False
    assert trial.forms()[TorchConv.name] is True
    topology, values, bias = connections_of(conv)
    double = ConvTrial(trial.convolution, (topology, values.double(), bias), (2, 6, 6))
    assert PixelsConv.name not in double.forms()


def test_dense_winners_keep_their_parameters(monkeypatch) -> None:
    prefer(monkeypatch, "dense channels last")
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    weight, x = model[0].weight, torch.randn(2, 2, 6, 6)
    expected = model(x).detach()
    pack_(model, x, cache=False)
    assert isinstance(model[0], DenseConv2d)
    assert model[0].weight is weight
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(copy.deepcopy(model)(x), expected)


def test_blocks_of_channels_hold_another_topology_with_zeros(monkeypatch) -> None:
    prefer(monkeypatch, "row blocks pixels")
    model, x = residual(sharing=2), torch.randn(3, 4, 9, 11)
    pack_(model, x, cache=False)
    assert isinstance(model.conv1, PackedConv2d)
    other = residual(sparsity=0.6, sharing=1)  # no two of its channels share their taps
    with torch.no_grad():
        kept = model.conv1.topology.positions()
        values = torch.randn(kept.numel())
        values[::3] = 0.0  # what is kept may be zero
        model.conv1.weight_values.copy_(values)
        dense = torch.zeros(model.conv1.weight.numel()).index_put_((kept,), values)
        expected = nn.functional.conv2d(x, dense.view(6, 4, 3, 3), None, 2, 1)
        norm = model.bn1
        shape = (1, -1, 1, 1)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        expected = (expected - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)
        torch.testing.assert_close(model.conv1(x), expected.relu(), rtol=1e-4, atol=1e-4)
        convolution, (topology, loose, _) = convolution_of(other.conv1), connections_of(other.conv1)
        assert sharing_channels(topology) is None
        held = BlockPixelsConv.build(convolution, topology, loose, (3, 9, 11))
        plain = nn.functional.conv2d(x, other.conv1.weight, None, 2, 1)
        torch.testing.assert_close(held.conv(x, None, "none"), plain, rtol=1e-4, atol=1e-4)
