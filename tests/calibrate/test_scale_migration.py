"""SmoothQuant and AWQ: exact before rounding, better after it."""

import copy

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.calibrate.awq import AWQ
from openwork.calibrate.smoothquant import SmoothQuant
from openwork.calibrator.migrating import Migrating
from openwork.folding import Fold, folds
from openwork.statistics import Statistics
from openwork.tasks.gpt import gpt_small
from tests.calibrate.problems import inputs


class Net(nn.Module):
    """Two blocks whose first layers read channels of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24)) for _ in range(2)
        )
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
            for block in self.blocks:
                block[0].weight[:3] *= 20  # type: ignore[index]
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def data() -> list[torch.Tensor]:
    return [inputs(40, 24, seed).view(4, 10, 24) for seed in range(3)]


@pytest.mark.parametrize("stage", [SmoothQuant(), SmoothQuant(strength=0.8), AWQ(group=8)], ids=repr)
def test_the_model_computes_the_same_and_keeps_its_zeros(stage: Migrating) -> None:
    net = Net()
    with torch.no_grad():
        net.blocks[0][1].weight[::2, ::3] = 0  # type: ignore[index]
    before, weights = net(data()[0]), copy.deepcopy(net.state_dict())
    ow.sparsify_(net, stage, data=data())
    assert torch.allclose(net(data()[0]), before, rtol=1e-9)
    assert not torch.equal(net.blocks[0][0].weight, weights["blocks.0.0.weight"])  # type: ignore[index]
    for name, weight in net.state_dict().items():
        assert torch.equal(weight == 0, weights[name] == 0)


def quantised(recipe: list[Migrating | ow.RTN]) -> float:
    net, reference = Net(), Net()
    ow.sparsify_(net, recipe, data=data())
    return float(sum((net(x) - reference(x)).detach().square().sum() for x in data()))


def test_rounding_harms_less_after_awq() -> None:
    rounding = ow.RTN(grid="int3", group=12)
    assert quantised([AWQ(grid="int3", group=12), rounding]) < 0.9 * quantised([rounding])


def fold_and_statistics() -> tuple[Fold, Statistics]:
    net, x = Net(), data()[0]
    fold = next(f for f in folds(net.blocks[0], lambda: net.blocks[0](x)) if f.name == "0.weight")
    read = net.blocks[0][0](x).detach().view(-1, 24)  # type: ignore[index]
    seen = Statistics(24, gram=True, dtype=torch.float64)
    seen.add(read)
    return fold, seen


def test_smoothing_gives_weights_and_inputs_the_same_maximum() -> None:
    fold, seen = fold_and_statistics()
    s = SmoothQuant().scales(fold, seen)
    weight = fold.readers[0].matrix().abs().amax(0)
    assert torch.allclose(seen.maximum / s, weight * s)
    whole = SmoothQuant(strength=1.0).scales(fold, seen)
    assert torch.allclose(seen.maximum / whole, torch.ones(24, dtype=torch.float64))


def test_awq_takes_the_best_exponent() -> None:
    fold, seen = fold_and_statistics()
    stage = AWQ(grid="int3", group=12)
    s = stage.scales(fold, seen)
    errors = {}
    for i in range(20):
        candidate = (seen.absolute / seen.count).pow(i / 20)
        candidate = candidate / (candidate.max() * candidate.min()).sqrt()
        errors[i] = stage._error(fold.readers[0].matrix(), candidate, seen)
        if i == 0:
            assert torch.equal(candidate, torch.ones(24, dtype=torch.float64))  # a = 0 is the identity
    assert stage._error(fold.readers[0].matrix(), s, seen) == pytest.approx(min(errors.values()))
    assert min(errors.values()) < errors[0]


def test_wanda_chooses_the_same_masks_afterwards() -> None:
    plain, moved = Net(), Net()
    masks = ow.sparsify_(plain, [ow.Wanda()], data=data()).masks
    again = ow.sparsify_(moved, [SmoothQuant(), ow.Wanda()], data=data()).masks
    assert all(torch.equal(mask, again[name]) for name, mask in masks.items())


def test_nothing_to_fold_into_is_an_error_and_nothing_changes() -> None:
    net = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 24)).double()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="nothing to fold a scale into"):
        ow.sparsify_(net, SmoothQuant(), data=data(), blocks="whole")
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())


def test_moving_scale_comes_first() -> None:
    with pytest.raises(ValueError, match="come first"):
        ow.sparsify_(Net(), [ow.RTN(), SmoothQuant()], data=data())


def test_in_a_transformer_only_norms_can_take_the_scale() -> None:
    model = gpt_small(width=16, depth=2, heads=2, context=12)
    tokens = torch.randint(0, 65, (2, 12), generator=torch.Generator().manual_seed(0))
    found = folds(model.blocks[0], lambda: model.blocks[0](torch.randn(2, 12, 16)))
    assert {f.name: [r.name for r in f.readers] for f in found} == {
        "norm1.weight": ["attention.qkv.weight"],
        "norm2.weight": ["mlp.up.weight"],
    }
    before = model(tokens)
    ow.sparsify_(model, SmoothQuant(), data=[tokens])
    assert torch.allclose(model(tokens), before, atol=1e-5)
