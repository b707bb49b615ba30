"""The small models: shapes, sizes, names, and weights that come from their seed alone."""

import pytest
import torch
from torch import nn

from openwork.tasks.convnet import conv_small
from openwork.tasks.gpt import gpt_small
from openwork.tasks.initial import seeded
from openwork.tasks.mlp import lenet_300_100, mlp
from openwork.tasks.resnet import resnet20

IMAGES = {"mlp": (3, 1, 8, 8), "lenet": (3, 1, 28, 28), "conv": (3, 1, 28, 28), "resnet": (3, 3, 32, 32)}
MODELS = {
    "mlp": lambda seed: mlp([64, 33, 17, 10], seed=seed),
    "lenet": lambda seed: lenet_300_100(seed=seed),
    "conv": lambda seed: conv_small(seed=seed),
    "resnet": lambda seed: resnet20(seed=seed),
    "gpt": lambda seed: gpt_small(vocabulary=11, context=9, width=16, heads=2, depth=2, seed=seed),
}


def inputs(name):
    generator = torch.Generator().manual_seed(1)
    if name == "gpt":
        return torch.randint(0, 11, (3, 9), generator=generator)
    return torch.randn(IMAGES[name], generator=generator)


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_from_the_seed_and_from_nothing_else(name):
    state = torch.get_rng_state()
    first, again, other = MODELS[name](3), MODELS[name](3), MODELS[name](4)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_finite_logits_and_every_parameter_learns(name):
    model, x = MODELS[name](0), inputs(name)
    y = model(x)
    assert y.shape == ((3, 9, 11) if name == "gpt" else (3, 10))
    y.square().sum().backward()
    assert all(
        p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any())
        for p in model.parameters()
    )


def test_sizes_are_the_published_ones():
    def count(model):
        return sum(p.numel() for p in model.parameters())

    assert count(lenet_300_100()) == 266_610
    assert count(resnet20()) == 269_722
    assert 0.8e6 < count(gpt_small()) < 0.85e6


def test_names_of_a_perceptron_are_readable():
    model = mlp([4, 3, 2], nn.Tanh)
    assert [name for name, _ in model.named_children()] == ["flatten", "fc1", "act1", "fc2"]
    assert isinstance(model.act1, nn.Tanh)


def test_a_resnet_block_that_grows_carries_its_input():
    block = seeded(lambda: __import__("openwork.tasks.resnet", fromlist=["Block"]).Block(2, 6, 2), 0).eval()
    with torch.no_grad():
        block.conv1.weight.zero_()
        block.conv2.weight.zero_()
        x = torch.rand(1, 2, 4, 4)
        y = block(x)
    expected = torch.zeros(1, 6, 2, 2)
    expected[:, 2:4] = x[:, :, ::2, ::2]
    assert torch.equal(y, expected)


def test_a_character_is_predicted_from_those_before_it():
    model = MODELS["gpt"](0)
    x = inputs("gpt")
    changed = x.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:, :5], model(changed)[:, :5])
        assert not torch.allclose(model(x)[:, 5:], model(changed)[:, 5:])


def test_variance_is_two_over_the_inputs():
    layer = mlp([400, 300, 2], seed=1).fc1
    assert float(layer.weight.detach().var()) == pytest.approx(2 / 400, rel=0.02)
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: mlp([5]), "at least an input and an output"),
        (lambda: mlp([5, 0, 2]), "all positive"),
        (lambda: conv_small(side=30), "multiple of 4"),
        (lambda: gpt_small(width=10, heads=3), "cannot be split"),
        (lambda: gpt_small(context=4)(torch.zeros(1, 5, dtype=torch.int64)), "knows 4 positions"),
    ],
)
def test_impossible_sizes_are_refused(build, reason):
    with pytest.raises(ValueError, match=reason):
        build()


def test_layers_without_a_rule_are_refused():
    with pytest.raises(TypeError, match="0 is a PReLU"):
        seeded(lambda: nn.Sequential(nn.PReLU()), 0)
