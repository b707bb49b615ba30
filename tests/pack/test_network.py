"""Networks of convolutions as a whole: the numbers of the layers, and `forward` wherever the network does not apply."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import openwork as ow
from openwork.kernels.block_conv import BlockConv
from openwork.layouts.packed_conv import PackedConv2d
from openwork.pack import choice, operators, pack_, whole
from openwork.pack.network import Network, Runner
from openwork.pack.steps import Blocked, Conv, Depthwise
from openwork.tasks.resnet import resnet20

pytestmark = pytest.mark.filterwarnings("ignore:.*mkldnn.*")


class Everything(nn.Module):
    """Residuals of all kinds, several consumers, poolings, reshapes: nothing square, nothing even."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 10, 5, 2, 2), nn.BatchNorm2d(10)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.a1, self.n1 = nn.Conv2d(10, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.a2, self.n2 = nn.Conv2d(10, 10, 1), nn.BatchNorm2d(10)
        self.thin, self.n3 = nn.Conv2d(10, 20, 3, 2, 1, groups=5, bias=False), nn.BatchNorm2d(20)
        self.short = nn.Conv2d(10, 20, 1, 2)
        self.wide = nn.Conv2d(20, 7, (1, 3), padding=(0, 1))
        self.mean, self.average = nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2)
        self.gate, self.last = nn.Linear(20, 20), nn.Linear(27 + 7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.stem(x))))
        y = F.relu(self.n1(self.a1(x)))
        y = self.n2(self.a2(y))
        y += x
        x = self.relu(y)
        z = F.relu(self.n3(self.thin(x)) + self.short(x))
        z = z * torch.sigmoid(self.gate(z.mean((2, 3))))[:, :, None, None]
        w = F.relu(self.wide(z)) + self.wide(z)
        both = torch.cat([z, w], 1)
        small = self.average(both).amax((2, 3))[:, :7]
        return self.last(torch.cat([self.mean(both).flatten(1), small], 1).view(-1, 34))


class Shortcuts(nn.Module):
    """Shortcuts without parameters, as small residual networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        return F.relu(self.two(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3)))


class Around(nn.Module):
    """A convolution whose own input is carried around it, and nobody reads again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        x = F.relu(self.two(x) + x)
        return self.three(x + self.two(x))


class Separable(nn.Module):
    """Convolutions that keep channels apart, with a norm, a shortcut or nothing behind them, and 1 x 1 ones between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.thin, self.norm = (
            nn.Conv2d(3, 6, 3, 2),
            nn.Conv2d(6, 6, 3, 1, 1, groups=6),
            nn.BatchNorm2d(6),
        )
        self.mix, self.more = nn.Conv2d(6, 10, 1), nn.Conv2d(10, 20, 5, 2, 2, groups=10, bias=False)
        self.last, self.around = nn.Conv2d(20, 9, 1), nn.Conv2d(9, 9, (3, 1), padding=(1, 0), groups=9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.thin(F.relu(self.stem(x)))))
        x = self.last(F.relu(self.more(F.relu(self.mix(x)))))
        return F.relu(self.around(x) + x).mean((2, 3))


def sparse(model: nn.Module, sparsity: float = 0.8) -> nn.Module:
    """In evaluation mode, with random weights and statistics, of which most are zero in convolutions."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3 * (tensor.dim() > 1))
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                module.weight.mul_(torch.rand(module.weight.shape, generator=generator) >= sparsity)
    return model.eval()


def prefer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let layers be sparse, but for the first one, whose outputs have channels last; and let a form win as a whole."""

    def contest(trial: choice.Trial[object], seconds: float) -> dict[str, object]:
        first = trial.shape[1] == 3
        best = ("dense channels last",) if first else ("csr images", "csr pixels")
        return {form: _lasting(1.0 + (form not in best)) for form in trial.forms()}

    monkeypatch.setattr(choice.Trial, "contest", contest)
    monkeypatch.setattr(
        whole, "race", lambda calls, **_: {form: _lasting(1.0 + (form != name)) for form in calls}
    )


def _lasting(seconds: float) -> object:
    return ow.timing.Latency(seconds, seconds, seconds, 9, 0)


FORMS = ["layers as measured", "sparse convolutions in blocks", "all convolutions in blocks"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("images", [16, 17, 7])
@pytest.mark.parametrize("build", [Everything, Shortcuts, Around, Separable, resnet20])
@torch.no_grad()
def test_networks_compute_the_model_before(
    build: Callable[[], nn.Module], images: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, form)
    model, size = sparse(build()), (10, 13) if build is resnet20 else (27, 38)
    x = torch.randn(images, 3, *size)
    expected, keys = model(x), list(model.state_dict())
    decisions = pack_(model, x, cache=False)
    assert [told.form for told in decisions.whole] == [form]
    assert "as a whole" in str(decisions)
    assert isinstance(model.forward, Runner)
    assert model.forward.networks[images].fits(x)
    for count in (
        images,
        1,
        2,
        3,
        4,
        images + 16,
    ):  # memory of its own for each, and results nobody overwrites
        y = torch.randn(count, 3, *size)
        first, second = model(x), model(y)
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        plain = type(model).forward(model, y)
        torch.testing.assert_close(second, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert set(keys) - set(model.state_dict()) == {
        f"{name}.weight" for name, m in model.named_modules() if isinstance(m, PackedConv2d)
    }


@pytest.mark.parametrize("images", [1, 16])
@torch.no_grad()
def test_convolutions_that_keep_channels_apart_take_over_what_is_behind_them(
    images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, "layers as measured")
    model, x = sparse(Separable()), torch.randn(images, 3, 17, 21)
    expected = model(x)
    found = network(model, x)
    assert [type(step) for step in found.steps if isinstance(step, Conv)].count(Depthwise) == 3
    kept = {step.layer for step in found.steps if isinstance(step, Conv)}
    assert model.norm not in {getattr(step, "call", None) for step in found.steps}
    assert {model.thin, model.more, model.around} <= kept
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    model.norm.weight.mul_(2)  # another state is seen
    torch.testing.assert_close(model(x), type(model).forward(model, x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("images", [1, 16])
@torch.no_grad()
def test_networks_hold_blocks_of_channels_as_blocks(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    how = "pixels" if images == 1 else "blocks"
    prefer(monkeypatch, f"all convolutions in {how}")
    monkeypatch.setattr(
        choice.Trial,
        "contest",
        lambda trial, _: {form: _lasting(1.0 + (form != "dense")) for form in trial.forms()},
    )
    model, x = sparse(Shortcuts(), 0.0), torch.randn(images, 3, 16, 17)
    generator = torch.Generator().manual_seed(1)
    for conv, shape in ((model.one, (2, 3, 3, 3)), (model.two, (3, 8, 3, 3))):
        mask = torch.rand(shape, generator=generator) < 0.3
        conv.weight.mul_(mask.repeat_interleave(4, 0))
    expected = model(x)
    frozen = [step.frozen for step in network(model, x).steps if isinstance(step, Conv)]
    assert [type(held) for held in frozen] == [BlockConv, BlockConv]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def network(model: nn.Module, x: Tensor) -> Network:
    """Packed, and as a network."""
    assert pack_(model, x, cache=False).whole
    found = model.forward.networks[x.shape[0]]
    assert found is not None
    return found


@torch.no_grad()
def test_what_stands_between_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, FORMS[2])
    found = network(sparse(Everything()), torch.randn(16, 3, 27, 38))
    steps = {step.layer: step for step in found.steps if isinstance(step, Conv)}
    model = found.model
    assert [steps[m].activation for m in (model.stem, model.a1, model.a2, model.thin)] == ["relu"] * 4
    assert steps[model.a2].carried == steps[model.a1].x  # the shortcut
    assert steps[model.thin].carried == steps[model.short].to
    assert steps[model.thin].norm is model.n3
    assert not any(isinstance(step, Blocked) and step.call is operators.add for step in found.steps)


@torch.no_grad()
def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, FORMS[2])
    model, x = sparse(Everything()), torch.randn(19, 3, 27, 38)
    found = network(model, x)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(found(x))
    torch.set_num_threads(before)
    convolved = [step for step in found.steps if isinstance(step, Conv)]
    assert convolved
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_where_the_network_does_not_apply_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, FORMS[1])
    model, x = sparse(Shortcuts()), torch.randn(16, 3, 9, 11)
    found = network(model, x)
    assert torch.equal(found(x), model(x))
    monkeypatch.setattr(Network, "__call__", lambda *_: pytest.fail("the network ran"))
    other = torch.randn(16, 3, 12, 7)
    torch.testing.assert_close(model(other), type(model).forward(model, other))
    assert model(torch.randn(0, 3, 9, 11)).shape == (0, 12, 5, 6)
    seen: list[int] = []
    handle = model.one.register_forward_hook(lambda *_: seen.append(1))
    model(x)
    handle.remove()
    assert seen == [1]
    model.train()
    model(x)
    with torch.enable_grad(), pytest.raises(RuntimeError, match="gives no gradients"):
        model(x.requires_grad_())


@torch.no_grad()
def test_state_loaded_later_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, FORMS[1])
    model, x = sparse(Shortcuts()), torch.randn(16, 3, 9, 11)
    network(model, x)
    clone = copy.deepcopy(model)
    assert clone.forward.model is clone
    before = model(x)
    torch.testing.assert_close(clone(x), before)
    clone.two.weight_values.mul_(3.0)
    torch.testing.assert_close(clone(x), type(clone).forward(clone, x), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(clone(x), before)
    clone.two.bias.add_(1000.0)
    assert float((clone(x) - before).min()) > 50
    torch.testing.assert_close(model(x), before)
    model.load_state_dict(clone.state_dict())
    torch.testing.assert_close(model(x), clone(x))


@torch.no_grad()
def test_packing_again_starts_from_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, FORMS[1])
    model, x = sparse(Shortcuts()), torch.randn(16, 3, 9, 11)
    expected = model(x)
    network(model, x)
    prefer(monkeypatch, whole.LAYERS)
    (told,) = pack_(model, x, cache=False).whole
    assert told.form == whole.LAYERS
    assert "forward" not in vars(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-3)


class Shared(nn.Module):
    """Writes into a tensor that is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        z = self.two(y)
        F.relu(y, inplace=True)
        return z + y


class Decides(Shortcuts):
    """Takes a way that depends on the images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


@pytest.mark.parametrize("build", [Shared, Decides])
@torch.no_grad()
def test_what_cannot_be_read_is_left_alone(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer(monkeypatch, FORMS[1])
    model, x = sparse(build()), torch.randn(16, 3, 9, 11)
    expected = model(x)
    assert pack_(model, x, cache=False).whole == ()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-3)
