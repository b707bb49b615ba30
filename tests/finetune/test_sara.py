"""SaRA trains the smallest weights, exactly so many, pulls them to low rank, and chooses among them once more."""

import itertools

import pytest
import torch
from torch import nn

from openwork import SaRA, thaw_
from tests.hf.tiny import gpt2, mixtral


def net(sizes=(70, 80, 66, 5), seed=0):
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) * (0.1 if p.dim() > 1 else 1e-6)
    return model


def test_the_smallest_of_all_matrices_together_and_exactly_so_many():
    model = net()
    part = thaw_(model, SaRA(fraction=0.13, rearm=1.0))
    weights = torch.cat([model[i].weight.detach().abs().flatten() for i in range(3)])
    least = weights.sort().values[round(0.13 * len(weights)) - 1]
    assert part.trainable == round(0.13 * len(weights))
    for i in range(3):
        chosen = part.weights[f"{i}.weight"].part.positions
        assert torch.equal(chosen, (model[i].weight.detach().abs() <= least).flatten().nonzero().flatten())


def test_ties_are_counted_exactly():
    model = net()
    for p in model.parameters():
        p.data.fill_(0.25)
    assert thaw_(model, SaRA(fraction=0.3, rearm=1.0)).trainable == round(0.3 * (70 * 80 + 80 * 66 + 66 * 5))


def test_a_threshold():
    model = net()
    part = thaw_(model, SaRA(threshold=0.02, rearm=1.0))
    for name, weight in part.weights.items():
        inside = part.weights[name].parameter.detach().abs() < 0.02
        assert torch.equal(weight.part.positions, inside.flatten().nonzero().flatten())
    assert set(part.weights) == {"0.weight", "1.weight", "2.weight"}  # no bias, however small


def test_the_model_starts_with_its_own_signs():
    model, x = net(), torch.randn(4, 70, dtype=torch.float64)
    y = model(x)
    thaw_(model, SaRA(fraction=0.5, rearm=1.0))
    assert torch.equal(model(x), y)


def test_the_pull_is_the_gradient_of_the_nuclear_norm():
    model = net()
    method = SaRA(fraction=0.4, rearm=1.0, nuclear=0.3)
    part = thaw_(model, method)
    optimizer = torch.optim.SGD(part.parameters(), lr=1.0)
    part.attach(optimizer)
    before = {}
    for name, weight in part.weights.items():
        weight.values.grad = torch.zeros_like(weight.values)
        before[name] = weight.values.detach().clone()
    wanted = {}
    for name in ("0.weight", "1.weight"):
        weight = part.weights[name]
        values = before[name].clone().requires_grad_()
        alone = torch.zeros(weight.parameter.numel(), dtype=torch.float64)
        alone = alone.index_put((weight.part.positions,), values).view(weight.parameter.shape)
        torch.linalg.svdvals(alone).sum().backward()
        wanted[name] = before[name] - 0.3 * values.grad
    optimizer.step()
    moved = [n for n, w in part.weights.items() if not torch.equal(w.values, before[n])]
    assert len(moved) == 1  # one matrix a step
    assert moved[0] != "2.weight"  # too narrow
    torch.testing.assert_close(part.weights[moved[0]].values.detach(), wanted[moved[0]])


def test_rearming_goes_on_with_those_that_are_still_small():
    model = net()
    part = thaw_(model, SaRA(threshold=0.05, steps=8, nuclear=0.0))
    optimizer = torch.optim.AdamW(part.parameters(), lr=0.02)
    part.attach(optimizer)
    g = torch.Generator().manual_seed(1)
    for step in range(1, 9):
        optimizer.zero_grad()
        model(torch.randn(16, 70, generator=g, dtype=torch.float64)).square().mean().backward()
        if step == 4:
            first = {n: w.part.positions for n, w in part.weights.items()}
        optimizer.step()
        if step == 4:
            for name, weight in part.weights.items():
                now = weight.parameter.detach().flatten()
                still = first[name][now[first[name]].abs() < 0.05]
                assert torch.equal(weight.part.positions, still)
                assert 0 < len(still) < len(first[name])
                assert weight.values not in optimizer.state
            resting = {n: w.parameter.detach().clone() for n, w in part.weights.items()}
    for name, weight in part.weights.items():
        weight.write()
        rest = torch.ones(weight.parameter.numel(), dtype=torch.bool)
        rest[weight.part.positions] = False
        assert torch.equal(weight.parameter.detach().flatten()[rest], resting[name].flatten()[rest])
        assert not torch.equal(weight.parameter, resting[name])
    for name, (positions, _) in part.delta().items():
        assert torch.equal(positions, first[name])  # what was learned before counts as learned


@pytest.mark.parametrize("make", [gpt2, mixtral])
def test_transposed_tied_and_fused_weights(make):
    model = make()
    part = thaw_(model, SaRA(fraction=0.2, steps=2, least=8))
    assert not any("wte" in name or "embed" in name for name in part.weights)
    optimizer = torch.optim.AdamW(part.parameters(), lr=0.01)
    part.attach(optimizer)
    tokens = torch.randint(4, 40, (2, 10), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    part.merge_()
    for name, p in make().named_parameters():
        share = float((model.get_parameter(name) != p).float().mean())
        assert share < 0.6 if name in part.weights else share == 0.0
