"""Groups that are absent or quantised."""

import copy
import dataclasses

import pytest
import torch

import openwork as ow
from openwork.calibrate.gptq import GPTQ
from openwork.calibrate.gqsa import GQSA, brain_surgeon_saliency
from openwork.calibrate.rtn import RTN
from openwork.patterns import Block
from openwork.reconstruction.hessian import damped
from tests.calibrate.problems import inputs, layer, output_error


def at_hand(seed: int = 0, out: int = 12, groups: int = 5, kept: int = 30):  # type: ignore[no-untyped-def]
    held, x = layer(out, 16 * groups, x=inputs(300, 16 * groups, seed), seed=seed)
    return dataclasses.replace(held, pattern=Block(1, 16), kept=16 * kept), x


def test_saliency_is_that_of_the_optimal_brain_surgeon() -> None:
    held, _ = layer(seed=3)
    inverse = damped(held.statistics.gram, 0.01).inverse()
    expected = held.weight.square() / inverse.diagonal()
    assert torch.allclose(brain_surgeon_saliency(held, 0.01), expected, rtol=1e-8)


def test_the_most_salient_groups_stay_and_are_quantised() -> None:
    held, _ = at_hand()
    solution = GQSA().solve(held)
    mean = brain_surgeon_saliency(held, 0.01).view(12, 5, 16).mean(2)
    kept = solution.mask.view(12, 5, 16)
    assert torch.equal(kept.all(2), kept.any(2))
    assert int(kept.all(2).sum()) == 30
    assert float(mean[kept.all(2)].min()) >= float(mean[~kept.all(2)].max())
    assert bool((solution.weight[~solution.mask] == 0).all())
    steps = solution.weight.view(12, 5, 16)[kept.all(2)]
    assert max(len(group.unique()) for group in steps) <= 16


def test_with_nothing_dropped_it_is_rounding_in_groups() -> None:
    held, _ = at_hand(kept=60)
    stage = GQSA()
    assert torch.equal(stage.solve(held).weight, RTN(grid=stage.grid, group=16).solve(held).weight)


def test_kept_groups_can_make_up_for_the_dropped_ones() -> None:
    for seed in range(3):
        held, x = at_hand(seed, kept=42)
        first = GQSA().solve(held)
        after = dataclasses.replace(held, weight=first.weight, mask=first.mask)
        second = GPTQ(grid=GQSA().grid, group=16).solve(after)
        assert torch.equal(second.weight != 0, (second.weight != 0) & first.mask)
        assert output_error(held, second.weight, x) < output_error(held, first.weight, x)


def test_groups_chosen_gradually_cost_less_and_are_held_in_the_same_layout() -> None:
    """The same counts and pattern; GQSA's groups even with the best weights that they can have. Inputs that have much in common,
    as those inside a trained network: then groups could stand in for each other, and go together.
    """
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(96, 32))
    mixing = torch.randn(24, 96)
    data = [torch.randn(300, 24) @ mixing + 0.3 * torch.randn(300, 96) for _ in range(2)]
    dense = net[0].weight.detach().clone()

    def cost(recipe):  # type: ignore[no-untyped-def]
        model = copy.deepcopy(net)
        found = ow.sparsify_(model, recipe, data=data, blocks="whole")
        assert found.plan.kept == 96 * 32 // 2
        return float((torch.cat(data) @ (model[0].weight.detach() - dense).T).square().sum()), model, found

    levels = GQSA().grid
    gradual = ow.ALPS(sparsity=0.5, pattern="block 1x16")
    at_once, _, _ = cost([GQSA(sparsity=0.5), ow.Refit()])
    gradually, _, _ = cost(gradual)
    assert gradually < 0.8 * at_once
    rounded, model, found = cost([gradual, GPTQ(grid=levels, group=16, joint=False)])
    from_dense, _, _ = cost([gradual, GPTQ(grid=levels, group=16)])
    assert rounded < from_dense
    with torch.no_grad():
        expected = model(data[0])
    (layer,) = ow.to_quantized_(model, found).values()
    assert isinstance(layer, ow.GroupInt4Linear)
    torch.testing.assert_close(model(data[0]), expected, atol=1e-4, rtol=1e-4)


def test_the_spelling_of_its_pattern_is_known() -> None:
    assert GQSA(sparsity=0.3).pattern == "block 1x16"
    with pytest.raises(ValueError, match="grid is called"):
        GQSA(grid="four bits")
