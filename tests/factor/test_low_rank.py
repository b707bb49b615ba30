"""Layers as products of thin ones: each solver against its optimum, ranks against their budget."""

import dataclasses

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.factor.low_rank import LowRank, energy_ranks
from openwork.factor.ranks import allocated, uniform_rank
from openwork.factorization import break_even
from openwork.layouts.low_rank import LowRankLinear
from openwork.tasks.gpt import gpt_small
from tests.calibrate.problems import layer


def outputs(solution, linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    module = solution.module(linear)
    assert isinstance(module, LowRankLinear)
    return module(x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("solver", ["svd", "afm", "whitened"])
def test_each_solver_reaches_its_optimum(solver: str, bias: bool) -> None:
    held, x = layer(19, 27, bias=bias, seed=1)
    stage = LowRank(ratio=0.6, solver=solver, damping=1e-13)  # type: ignore[arg-type]
    rank = stage.rank(held.name, held.shape)
    assert rank == int(0.6 * 19 * 27 / 46)
    linear = nn.Linear(27, 19, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(held.dense)
        if held.bias is not None:
            linear.bias.copy_(held.bias)
    target = linear(x).detach()
    solution = stage.solve(held)
    y = outputs(solution, linear, x).detach()
    error = float((y - target).square().sum())
    apart = target - target.mean(0)
    expected = {
        "svd": float((x @ (held.dense - solution.weight).T).square().sum()),
        "whitened": float(torch.linalg.svdvals(x @ held.dense.T)[rank:].square().sum()),
        "afm": float(torch.linalg.svdvals(apart)[rank:].square().sum()),
    }
    assert error == pytest.approx(expected[solver], rel=1e-6)
    if solver == "svd":
        tail = torch.linalg.svdvals(held.dense)[rank:].square().sum()
        assert float((held.dense - solution.weight).square().sum()) == pytest.approx(float(tail))


def test_merging_gives_the_same_outputs() -> None:
    left, right, bias = torch.randn(7, 3), torch.randn(3, 9), torch.randn(7)
    module, x = LowRankLinear(left, right, bias), torch.randn(2, 5, 9)
    assert torch.allclose(module.merged()(x), module(x), atol=1e-5)
    assert torch.allclose(module.weight, left @ right)
    assert set(module.state_dict()) == {"left", "right", "bias"}
    model = nn.Sequential(module)
    ow.to_dense_(model)
    assert torch.equal(model[0].weight, module.weight)
    with pytest.raises(ValueError, match="factors are"):
        LowRankLinear(left, left)


def test_a_rank_that_saves_nothing_leaves_the_layer_alone() -> None:
    held, _ = layer(19, 27)
    solution = LowRank(ranks={"fc.*": 12}).solve(held)
    assert solution.module is None
    assert torch.equal(solution.weight, held.weight)
    assert LowRank(ranks={"fc.*": 11}).solve(held).module is not None


def test_pruned_weights_and_convolutions_are_refused() -> None:
    held, _ = layer(sparsity=0.4)
    with pytest.raises(ValueError, match="would fill"):
        LowRank().solve(held)
    with pytest.raises(ValueError, match="convolution"):
        LowRank().solve(dataclasses.replace(layer()[0], shape=(11, 1, 23, 1)))


def data(batches: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 65, (3, 24), generator=generator) for _ in range(batches)]


def model() -> nn.Module:
    return gpt_small(width=24, depth=2, heads=2, context=24)


@pytest.mark.parametrize("solver", ["svd", "afm", "whitened"])
def test_a_model_becomes_thinner_and_is_saved_and_loaded(solver: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    small = model()
    before = sum(p.numel() for p in small.parameters())
    ow.sparsify_(small, LowRank(ratio=0.5, solver=solver), data=data())  # type: ignore[arg-type]
    thin = [m for m in small.modules() if isinstance(m, LowRankLinear)]
    assert len(thin) == 8
    assert sum(p.numel() for p in small.parameters()) < before
    x = data()[0]
    ow.save(small, tmp_path / "thin.safetensors")
    other = model()
    ow.sparsify_(other, LowRank(ratio=0.5, solver="afm" if solver == "afm" else "svd"), data=data(1))
    ow.load(tmp_path / "thin.safetensors", into=other)
    assert torch.equal(other(x), small(x))
    with pytest.raises(ow.FileError, match=r"right|left"):
        ow.load(tmp_path / "thin.safetensors", into=model())


def test_energy_is_shared_by_need() -> None:
    spectra = {
        "flat": ((40, 40), torch.ones(40)),
        "steep": ((40, 40), torch.cat([torch.full((4,), 100.0), torch.full((36,), 1e-3)])),
    }
    ranks = allocated(spectra, 0.6)
    assert ranks["steep"] == 4
    assert ranks["flat"] == 40  # what it would keep saves nothing, so it stays dense
    assert sum(40 * 40 if r > break_even(40, 40) else r * 80 for r in ranks.values()) <= 0.6 * 3200 + 1


def test_energy_ranks_keep_more_than_equal_ones_for_as_many_parameters() -> None:
    small, stage = model(), LowRank(ratio=0.5)
    before = {name: p.clone() for name, p in small.state_dict().items()}
    ranks = energy_ranks(small, stage, data())
    assert all(torch.equal(p, before[name]) for name, p in small.state_dict().items())
    shapes = {name: tuple(small.get_parameter(name).shape) for name in ranks}
    size = sum(a * b for a, b in shapes.values())
    held = sum(
        shapes[n][0] * shapes[n][1] if r > break_even(*shapes[n]) else r * sum(shapes[n])
        for n, r in ranks.items()
    )
    assert held <= 0.5 * size
    equal = {name: uniform_rank(shape, 0.5) for name, shape in shapes.items()}
    assert ranks != equal
    found = ow.sparsify_(small, dataclasses.replace(stage, ranks=ranks), data=data())
    assert {name: part["factors"].left.shape[1] for name, part in found.parts.items()} == {
        name: r for name, r in ranks.items() if r <= break_even(*shapes[name])
    }
