"""Pruning at once: exact counts, nothing else touched, and all or nothing."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openwork.allocation import Global
from openwork.prune.grasp import GraSP
from openwork.prune.magnitude import Magnitude
from openwork.prune.snip import SNIP
from openwork.prune.synflow import SynFlow
from openwork.pruner import sparsify_
from openwork.storage import to_dense_, to_sparse_
from openwork.testing import batches, network
from openwork.train.set import SET

F = nn.functional
METHODS = [Magnitude, SNIP, GraSP, SynFlow]


def weights(model, names):
    return {n: p.detach() for n, p in model.named_parameters() if n in names}


@settings(max_examples=25)
@given(
    st.sampled_from([Magnitude, SNIP, GraSP]),
    st.sampled_from(["uniform", "erk", "global", "lamp"]),
    st.floats(0, 0.99),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_counts_are_exact_whatever_the_allocation_and_rounds(cls, allocation, sparsity, rounds, seed):
    model = network(seed=seed)
    before = copy.deepcopy(model.state_dict())
    pruned = sparsify_(model, cls(sparsity=sparsity, allocation=allocation, rounds=rounds), data=batches(1))
    assert pruned.plan.kept == round((1 - sparsity) * pruned.plan.numel)
    rows = {row.name: row for row in pruned.plan.sparse}
    assert pruned.masks.keys() == rows.keys()
    for name, tensor in model.state_dict().items():
        if name in rows:
            assert int(pruned.masks[name].sum()) == rows[name].kept
            assert torch.equal(tensor, before[name] * pruned.masks[name])
        else:
            assert torch.equal(tensor, before[name])
    assert str(pruned) == str(pruned.plan)
    assert f"asked sparsity {sparsity:g}" in str(pruned)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_rounds_cut_along_a_geometric_sequence(rounds, monkeypatch):
    counts = []
    method = SNIP(sparsity=0.9, rounds=rounds)
    inner = SNIP.scores

    def spy(self, model, weights, data, loss):
        counts.append(sum(int((w != 0).sum()) for w in weights.values()))
        return inner(self, model, weights, data, loss)

    monkeypatch.setattr(SNIP, "scores", spy)
    pruned = sparsify_(network(), method, data=batches(1))
    n = pruned.plan.numel
    final = round(0.1 * n)
    assert counts == [round(n * (final / n) ** (r / rounds)) for r in range(rounds)]
    assert pruned.plan.kept == final
    assert pruned.plan.method == method


def test_only_survivors_are_scored_again(monkeypatch):
    """Connections that are gone stay gone, even if a later round would score them first."""
    calls = []

    def fickle(self, model, weights, data, loss):
        calls.append(1)
        sign = 1 if len(calls) == 1 else -1
        return {name: sign * torch.arange(w.numel()).view(w.shape).double() for name, w in weights.items()}

    monkeypatch.setattr(Magnitude, "scores", fickle)
    pruned = sparsify_(nn.Linear(10, 10), Magnitude(sparsity=0.75, rounds=2))
    assert pruned.masks["weight"].flatten().nonzero().flatten().tolist() == list(range(50, 75))


@pytest.mark.parametrize("allocation", ["lamp", "global", Global(floor=0.01)])
def test_several_rounds_of_magnitude_are_one(allocation):
    """Where scores do not change, cutting twice is cutting once (except for LAMP, whose sums run over
    survivors).
    """
    once, twice = network(seed=3), network(seed=3)
    a = sparsify_(once, Magnitude(sparsity=0.8, allocation=allocation))
    b = sparsify_(twice, Magnitude(sparsity=0.8, allocation=allocation, rounds=3))
    for name, mask in a.masks.items():
        alive = twice.state_dict()[name][b.masks[name]]
        assert bool((alive != 0).all())  # no connection that was gone counts as kept
        if allocation != "lamp":
            assert torch.equal(mask, b.masks[name])


@pytest.mark.parametrize("cls", METHODS)
def test_inputs_first_and_experts_are_oriented(cls):
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.nf = 8
            self.weight = nn.Parameter(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            return x @ self.weight

    model = nn.Sequential(Conv1D())
    pruned = sparsify_(
        model, cls(sparsity=0.5, pattern="fan-in"), data=[(torch.rand(3, 4) + 0.1, torch.tensor([0, 1, 2]))]
    )
    assert pruned.masks["0.weight"].shape == (8, 4)
    assert (model[0].weight != 0).sum(0).tolist() == [2] * 8


def test_a_model_that_is_one_layer_or_compiled():
    layer = nn.Linear(6, 4)
    assert int((sparsify_(layer, Magnitude(sparsity=0.5)).masks["weight"]).sum()) == 12
    model = nn.Sequential(nn.Linear(6, 4))
    sparsify_(torch.compile(model, backend="eager"), Magnitude(sparsity=0.5))
    assert int((model[0].weight != 0).sum()) == 12


def test_frozen_weights_can_be_pruned():
    model = network().requires_grad_(False)
    pruned = sparsify_(model, SNIP(sparsity=0.8), data=batches(1))
    assert sum(int((w != 0).sum()) for w in weights(model, pruned.masks).values()) == pruned.plan.kept
    assert not any(p.requires_grad for p in model.parameters())


def test_a_generator_of_data_serves_several_rounds():
    a, b = network(), network()
    sparsify_(a, SNIP(sparsity=0.9, rounds=3), data=iter(batches(2)))
    sparsify_(b, SNIP(sparsity=0.9, rounds=3), data=batches(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from ((x[0], y[0]) for x, y in batches(8))


@pytest.mark.parametrize("cls", [SNIP, GraSP, SynFlow])
def test_data_whose_length_is_unknown(cls):
    loader = torch.utils.data.DataLoader(Stream(), batch_size=4)
    pruned = sparsify_(network(), cls(sparsity=0.5, rounds=1), data=loader)
    assert pruned.plan.kept == round(0.5 * pruned.plan.numel)


def test_another_loss():
    model = nn.Linear(4, 2, bias=False).double()
    x, y = torch.rand(5, 4).double(), torch.rand(5, 2).double()
    gradient = torch.autograd.grad(F.mse_loss(model(x), y), model.weight)[0]
    expected = (model.weight.detach() * gradient).abs().flatten().topk(3).indices.sort().values
    pruned = sparsify_(model, SNIP(kept=3), data=[(x, y)], loss=F.mse_loss)
    assert torch.equal(pruned.masks["weight"].flatten().nonzero().flatten(), expected)


@pytest.mark.parametrize("cls", [SNIP, GraSP])
def test_a_failure_in_a_late_round_leaves_the_model_as_it_was(cls):
    model = network()
    before = copy.deepcopy(model.state_dict())
    calls = []

    def fragile(outputs, targets):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        sparsify_(model, cls(sparsity=0.9, rounds=8), data=batches(1), loss=fragile)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("cls", [SNIP, GraSP])
def test_scores_of_nan_are_refused(cls):
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="hold NaN: nothing was pruned"):
        sparsify_(
            model,
            cls(sparsity=0.9),
            data=[(torch.full((4, 2, 6, 6), math.nan).double(), torch.zeros(4).long())],
        )
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("cls", [SNIP, GraSP, SynFlow])
def test_methods_that_look_at_data_say_so(cls):
    for nothing in (None, []):
        with pytest.raises(ValueError, match="batch"):
            sparsify_(network(), cls(), data=nothing)


def test_a_training_method_is_refused():
    with pytest.raises(TypeError, match=r"use ow.attach\(model, optimizer, method\)"):
        sparsify_(network(), SET())


def test_stored_layers_are_refused_and_can_be_excluded():
    model = network()
    to_sparse_(model, {"4.weight": torch.rand(12, 48) < 0.5})
    with pytest.raises(ValueError, match=r"4.weight already hold only their kept connections"):
        sparsify_(model, Magnitude())
    pruned = sparsify_(model, Magnitude(sparsity=0.5, exclude=("4.*",)))
    assert "4.weight" not in pruned.masks
    to_dense_(model)
    assert "4.weight" in sparsify_(model, Magnitude()).masks


def test_everything_by_override():
    pruned = sparsify_(network(), Magnitude(kept=1, rounds=2, overrides={"*.weight": 0.0, "4.weight": 0.75}))
    assert {n: int(m.sum()) for n, m in pruned.masks.items()} == {"4.weight": 144}
