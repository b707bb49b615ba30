"""The table made before anything changes: what is in it, and why."""

import pytest
import torch
from torch import nn

from openwork.layouts.linear import SparseLinear
from openwork.patterns import NM
from openwork.plan import plan, wanted_total
from openwork.prune.magnitude import Magnitude
from openwork.storage import to_sparse_
from openwork.train.gmp import GMP
from openwork.train.keep_zeros import KeepZeros
from openwork.train.rigl import RigL
from openwork.train.static_random import StaticRandom


class Conv1D(nn.Module):
    """As in transformers: inputs first."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


class TinyExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 4, 6))
        self.gate = nn.Parameter(torch.randn(3, 6))


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.conv = nn.Conv2d(4, 8, (3, 2), groups=2)
        self.up = nn.ConvTranspose2d(4, 10, 3, groups=2)
        self.lstm = nn.LSTM(6, 5, proj_size=3)
        self.cell = nn.GRUCell(6, 5)
        self.attention = nn.MultiheadAttention(6, 2, add_bias_kv=True)
        self.gpt = Conv1D(9, 6)
        self.experts = TinyExperts()
        self.bilinear = nn.Bilinear(3, 4, 5)
        self.mystery = nn.ParameterDict({"table": torch.randn(3, 3)})
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight


def rows(model, method=None):
    return {row.name: row for row in plan(model, method or StaticRandom(sparsity=0.5))}


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


def test_the_total_is_exact_and_shown():
    p = plan(Everything(), StaticRandom(sparsity=0.73))
    size = sum(row.numel for row in p.sparse)
    assert p.numel == size
    assert p.kept == round(0.27 * size)
    assert p.sparsity == 1 - p.kept / size
    assert f"static_random: asked sparsity 0.73; sparsity {p.sparsity:.6f}, {p.kept} of {size} kept" in str(p)
    for row in p:
        assert row.name in str(p)
        assert row.why in str(p)
        assert row.kept == row.numel or row.sparse
    lines = str(p).splitlines()
    assert len(lines) == len(p.rows) + 2
    assert plan(Everything(), StaticRandom(kept=100)).kept == 100


def test_nothing_changes():
    model = Everything()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    plan(model, RigL(sparsity=0.9))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def mlp():
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4))


def test_globs_choose_the_parameters():
    method = Magnitude(
        sparsity=0.5, exclude=("0.*",), overrides={"*": 0.9, "2.weight": 0.0, "4.weight": 0.25}
    )
    found = rows(mlp(), method)
    assert (found["0.weight"].why, found["0.weight"].sparse) == ("excluded: by name", False)
    assert (found["2.weight"].why, found["2.weight"].sparse) == ("override: dense", False)
    assert (found["4.weight"].why, found["4.weight"].kept) == ("override", 60)  # the last match wins
    assert (found["0.weight"].kept, found["2.weight"].kept) == (200, 400)


def test_overrides_take_no_part_in_the_allocation():
    found = rows(mlp(), Magnitude(sparsity=0.5, overrides={"4.weight": 0.9}))
    assert [found[f"{i}.weight"].kept for i in (0, 2, 4)] == [100, 200, 8]
    all_by_hand = plan(mlp(), Magnitude(overrides={"0.*": 0.5, "2.*": 0.5, "4.*": 1.0}, kept=3))
    assert [row.kept for row in all_by_hand] == [100, 200, 0]


def test_include_and_override_reach_what_is_dense_by_default():
    model = Everything()
    assert rows(model, StaticRandom(include=("embed.*",)))["embed.weight"].sparse
    assert rows(model, StaticRandom(overrides={"mystery.*": 1 / 3}))["mystery.table"].kept == 6
    both = StaticRandom(include=("embed.*",), exclude=("embed.*",))
    assert rows(model, both)["embed.weight"].why == "excluded: by name"


@pytest.mark.parametrize("option", ["include", "exclude", "overrides"])
def test_a_glob_that_matches_nothing_lists_the_nearest_names(option):
    value = {"head.wieght": 0.5} if option == "overrides" else ("head.wieght",)
    model = nn.ModuleDict({"head": nn.Linear(3, 3), "body": nn.Linear(3, 3)})
    with pytest.raises(
        ValueError, match=rf"{option}: 'head.wieght' matches no .* nearest names are head.weight"
    ):
        plan(model, StaticRandom(**{option: value}))


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_bare_string_is_not_a_list_of_globs(option):
    with pytest.raises(ValueError, match=r"write (in|ex)clude=\('0\.\*',\)"):
        plan(mlp(), StaticRandom(**{option: "0.*"}))


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
