"""What is planned before anything changes, and why."""

import pytest
import torch
from torch import nn

from openwork.layouts.linear import SparseLinear
from openwork.patterns import NM
from openwork.plan import plan, wanted_total
from openwork.storage import to_sparse_
from openwork.train.gmp import GMP
from openwork.train.keep_zeros import KeepZeros
from openwork.train.rigl import RigL
from openwork.train.static_random import StaticRandom
from tests.plan.models import Everything, mlp, rows


def test_every_kind_of_layer_has_its_row_shape_and_reason():
    found = {name: (row.shape, row.sparse, row.why) for name, row in rows(Everything()).items()}
    unknown = "excluded: unknown kind of layer, "
    assert found == {
        "embed.weight": ((11, 6), False, "excluded: embedding tied with head.weight"),
        "norm.weight": ((6,), False, "excluded: norm"),
        "conv.weight": ((8, 2, 3, 2), True, "erk"),
        "up.weight": ((5, 4, 3, 3), True, "erk"),
        "lstm.weight_ih_l0": ((20, 6), True, "erk"),
        "lstm.weight_hh_l0": ((20, 3), True, "erk"),
        "lstm.weight_hr_l0": ((3, 5), True, "capped dense by erk"),
        "cell.weight_ih": ((15, 6), True, "erk"),
        "cell.weight_hh": ((15, 5), True, "erk"),
        "attention.in_proj_weight": ((18, 6), True, "erk"),
        "attention.bias_k": ((1, 1, 6), False, f"{unknown}MultiheadAttention"),
        "attention.bias_v": ((1, 1, 6), False, f"{unknown}MultiheadAttention"),
        "attention.out_proj.weight": ((6, 6), True, "erk"),
        "gpt.weight": ((9, 6), True, "erk"),
        "experts.up": ((12, 6), True, "erk"),
        "experts.gate": ((3, 6), False, f"{unknown}TinyExperts"),
        "bilinear.weight": ((5, 3, 4), True, "erk"),
        "mystery.table": ((3, 3), False, f"{unknown}ParameterDict"),
    }


def test_nothing_changes():
    model = Everything()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    plan(model, RigL(sparsity=0.9))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_a_pattern_that_does_not_fit_leaves_the_layer_dense():
    found = rows(mlp(), StaticRandom(pattern="2:4"))
    assert found["0.weight"].why == "dense: 2:4 does not fit, 10 inputs are no multiple of 4"
    assert not found["0.weight"].sparse
    assert found["2.weight"].kept == 200
    assert found["2.weight"].pattern == NM(2, 4)


def test_nothing_to_make_sparse_is_an_error_with_reasons():
    with pytest.raises(ValueError, match=r"finds nothing .* 0.weight \(excluded: norm\)"):
        plan(nn.Sequential(nn.LayerNorm(3)), StaticRandom())
    with pytest.raises(ValueError, match="the model has no weights"):
        plan(nn.ReLU(), StaticRandom())


def test_a_pattern_that_fits_nowhere_is_to_be_changed():
    with pytest.raises(
        ValueError, match=r"finds nothing .* no multiple of 7.*\. Choose a pattern that fits$"
    ):
        plan(mlp(), StaticRandom(pattern="3:7"))


def test_a_model_and_a_method_are_what_they_should_be():
    with pytest.raises(TypeError, match=r"a model is a torch\.nn\.Module; got NoneType"):
        plan(None, StaticRandom())
    with pytest.raises(TypeError, match=r"StaticRandom is its class: write StaticRandom\(\.\.\.\)"):
        plan(mlp(), StaticRandom)


def test_impossible_totals():
    for kept in (-1, 681):
        with pytest.raises(ValueError, match=f"kept={kept} was asked for, .* have 680 connections"):
            plan(mlp(), StaticRandom(kept=kept))
    assert wanted_total(StaticRandom(sparsity=0.9), 50) == 5


@pytest.mark.parametrize("allocation", ["erk", "uniform", "balanced", "pyramid"])
def test_a_stored_layer_does_not_change_the_plan_of_the_others(allocation):
    def net():
        g = torch.Generator().manual_seed(5)
        model = nn.Sequential(
            nn.Conv2d(3, 7, 3), nn.Flatten(), nn.Linear(63, 11), nn.Conv1d(5, 3, 2), nn.Linear(11, 3)
        )
        for p in model.parameters():
            p.data = torch.randn(p.shape, generator=g)
        return model

    for method in (
        StaticRandom(sparsity=0.71, allocation=allocation),
        StaticRandom(kept=101, overrides={"4.*": 0.5}),
    ):
        model = net()
        masked = {row.name: row.kept for row in plan(model, method)}
        linear = [row for row in plan(model, method) if row.name in ("2.weight", "4.weight")]
        to_sparse_(model, {row.name: torch.arange(row.numel).view(row.shape) < row.kept for row in linear})
        stored = plan(model, method)
        assert {row.name: row.kept for row in stored} == masked
        assert {row.name for row in stored if row.why == "stored topology"} == {"2.weight", "4.weight"}
        assert isinstance(model[2], SparseLinear)


def test_a_stored_layer_can_be_excluded_and_pruned_further():
    model = mlp()
    to_sparse_(model, {"2.weight": torch.arange(400).view(20, 20) < 90})
    excluded = rows(model, StaticRandom(exclude=("2.*",)))["2.weight"]
    assert (excluded.sparse, excluded.kept) == (False, 90)
    assert plan(model, GMP(sparsity=0.9)).kept == 68  # shrinking methods count it like any other


def test_keep_zeros_plans_what_is_there():
    model = mlp()
    with torch.no_grad():
        model[0].weight.view(-1)[::4] = 0
        model[2].weight.zero_()
    p = plan(model, KeepZeros(exclude=("4.*",)))
    assert [(row.name, row.kept, row.why) for row in p.sparse] == [
        ("0.weight", 150, "zeros of the model"),
        ("2.weight", 0, "zeros of the model"),
    ]
    assert "asked the zeros of the model" in str(p)
