"""A convolution that owns only its kept weights, against the dense convolution with the same zeros."""

import copy

import pytest
import torch
from torch import nn

from openwork.files import load, save
from openwork.layouts.conv import SparseConv2d
from openwork.layouts.csr import CSR
from openwork.sparsifier import attach
from openwork.storage import to_dense_, to_sparse_
from openwork.train.rigl import RigL


def dense(dtype: torch.dtype = torch.float64, **options: object) -> tuple[nn.Conv2d, torch.Tensor]:
    """A dense convolution with zeros, and its mask; one kept weight is zero."""
    generator = torch.Generator().manual_seed(3)
    options = {"stride": (2, 1), "padding": (1, 2)} | options
    conv = nn.Conv2d(5, 7, (3, 2), dtype=dtype, **options)
    mask = torch.rand(conv.weight.shape, generator=generator) < 0.3
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * mask)
        conv.weight[mask] = conv.weight[mask].index_fill(0, torch.tensor([4]), 0.0)
    return conv, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 5, 9, 8), (5, 9, 8)])
def test_equals_the_dense_layer_forward_and_backward(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    conv, mask = dense(dtype)
    sparse = SparseConv2d.from_conv(conv, mask)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    y, expected = sparse(x), conv(twin)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-4)
    assert conv.weight.grad is not None
    torch.testing.assert_close(sparse.weight_values.grad, conv.weight.grad[mask], rtol=1e-4, atol=1e-4)


def test_there_and_back() -> None:
    conv, mask = dense()
    sparse = SparseConv2d.from_conv(conv, mask)
    assert isinstance(sparse, nn.Conv2d)
    assert sparse.topology == CSR.from_mask(mask.flatten(1))
    assert torch.equal(sparse.weight, conv.weight)
    back = sparse.to_conv()
    x = torch.randn(2, 5, 6, 6).double()
    assert torch.equal(back(x), conv(x))
    assert f"kept={int(mask.sum())}" in repr(sparse)
    assert copy.deepcopy(sparse)(x).shape == back(x).shape


def test_a_new_layer_keeps_as_many_as_asked_for() -> None:
    layer = SparseConv2d(6, 10, 3, padding=1, sparsity=0.9, generator=torch.Generator().manual_seed(1))
    assert layer.weight_values.numel() == 54
    assert layer(torch.randn(2, 6, 5, 5)).shape == (2, 10, 5, 5)
    assert [name for name, _ in layer.named_parameters()] == ["weight_values", "bias"]


def test_observed_gradients_are_those_of_the_dense_layer() -> None:
    conv, mask = dense()
    sparse = SparseConv2d.from_conv(conv, mask)
    sparse.observe = True
    for images in (3, 2):
        x = torch.randn(images, 5, 9, 8).double()
        sparse(x).square().sum().backward()
        conv(x).square().sum().backward()
    assert conv.weight.grad is not None
    flat = conv.weight.grad.flatten(1)
    torch.testing.assert_close(sparse.gradient_rows(2, 6), flat[2:6])
    places = torch.tensor([0, 31, 32, 100, 209])
    torch.testing.assert_close(sparse.gradient_at(places), flat.flatten()[places])


def test_state_dict_brings_its_own_topology() -> None:
    conv, mask = dense()
    sparse = SparseConv2d.from_conv(conv, mask)
    other = SparseConv2d(5, 7, (3, 2), (2, 1), (1, 2), kept=3, dtype=torch.float64)
    other.load_state_dict(sparse.state_dict())
    x = torch.randn(2, 5, 6, 6).double()
    assert torch.equal(other(x), sparse(x))


def test_files_bring_it_back(tmp_path) -> None:
    conv, mask = dense(torch.float32)
    model = nn.Sequential(SparseConv2d.from_conv(conv, mask), nn.BatchNorm2d(7), nn.ReLU())
    save(model, tmp_path / "m.safetensors")
    target = nn.Sequential(dense(torch.float32)[0], nn.BatchNorm2d(7), nn.ReLU())
    load(tmp_path / "m.safetensors", into=target)
    assert isinstance(target[0], SparseConv2d)
    x = torch.randn(2, 5, 6, 6)
    assert torch.equal(target.eval()(x), model.eval()(x))


def test_stored_training_takes_the_decisions_of_masked_training() -> None:
    def network() -> nn.Module:
        generator = torch.Generator().manual_seed(5)
        model = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, 2), nn.Flatten(), nn.Linear(20, 3)
        ).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator).double() * 0.3)
        return model

    method = RigL(sparsity=0.7, steps=8, every=2)
    masked, stored = network(), network()
    to_sparse_(stored, method)
    assert isinstance(stored[2], SparseConv2d)
    results = []
    for model in (masked, stored):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        sparsifier = attach(model, optimizer, method)
        generator, losses = torch.Generator().manual_seed(9), []
        for _ in range(8):
            x = torch.randn(4, 2, 6, 6, generator=generator).double()
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        results.append((losses, sparsifier.masks))
        sparsifier.detach()
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-9)
    for name, mask in results[0][1].items():
        assert torch.equal(mask, results[1][1][name])
    to_dense_(stored)
    for name, parameter in masked.named_parameters():
        torch.testing.assert_close(dict(stored.named_parameters())[name], parameter)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"groups": 1, "dilation": 2}, "dilated"), ({"padding_mode": "reflect"}, "'reflect'")],
)
def test_what_has_no_sparse_form_is_refused(options: dict[str, object], reason: str) -> None:
    conv, mask = dense(**options)
    with pytest.raises(ValueError, match=f"stays dense: .*{reason}"):
        SparseConv2d.from_conv(conv, mask)


def test_same_padding() -> None:
    conv = nn.Conv2d(3, 4, (3, 5), padding="same")
    x = torch.randn(2, 3, 7, 7)
    sparse = SparseConv2d.from_conv(conv, torch.ones(4, 3, 3, 5, dtype=torch.bool))
    torch.testing.assert_close(sparse(x), conv(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="padding 'same'"):
        SparseConv2d.from_conv(nn.Conv2d(3, 4, 2, padding="same"), torch.ones(4, 3, 2, 2, dtype=torch.bool))


def test_errors_say_what_was_found() -> None:
    layer = SparseConv2d(3, 4, 3, sparsity=0.5)
    with pytest.raises(ValueError, match=r"\[images, 3, rows, columns\], not float32 \[2, 4, 5, 5\]"):
        layer(torch.zeros(2, 4, 5, 5))
    with pytest.raises(TypeError, match=r"SparseConv2d stores 54 kept weights.*from_conv"):
        layer.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
    with pytest.raises(ValueError, match=r"connections \(4, 27\), not \(4, 26\)"):
        layer.retopologize_(CSR.random((4, 26), 5, torch.Generator()), torch.zeros(5))
