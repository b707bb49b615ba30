"""Merging: exact counts, unbiased masks, one model given back, zeros kept; refusals that name the tensor."""

import copy
import dataclasses
import json

import pytest
import torch
from torch import nn

from openwork import DARE, TIES, RigL, TaskArithmetic, attach, merge_, to_sparse_
from openwork.merger import Merging
from openwork.method import registry
from openwork.testing import check_method, network
from openwork.testing.suite import SAID

METHODS = {name: cls for name, cls in registry().items() if issubclass(cls, Merging)}


def tuned(model, seed, size=0.1):
    """A copy of a model whose parameters have moved."""
    other = copy.deepcopy(model)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p += (size * torch.randn(p.shape, generator=g)).to(p.dtype)
        for buffer in other.buffers():
            if buffer.is_floating_point():
                buffer += torch.rand(buffer.shape, generator=g).to(buffer.dtype)
    return other


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
def test_values_with_a_page(cls):
    check_method(cls, SAID)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", [DARE(sparsity=0.0), TIES(sparsity=0.0), TaskArithmetic(scale=1.0)])
def test_one_model_is_given_back(method, dtype):
    base = network(dtype)
    other = tuned(base, 1)
    done = merge_(base, [other], method)
    assert same(state(base), state(other))
    assert all(row.kept == (row.of,) for row in done)


@pytest.mark.parametrize(
    "method", [DARE(sparsity=0.87), DARE(sparsity=0.6, drop="smallest"), TIES(sparsity=0.7), DARE(kept=101)]
)
def test_counts_are_exact_and_the_rest_does_not_move(method):
    base = network()
    before = state(base)
    done = merge_(base, [tuned(base, 1)], method)
    thin = [row for row in done if len(row.shape) > 1]
    places = sum(row.of for row in thin)
    wanted = method.kept or round((1 - method.sparsity) * places)
    assert sum(row.kept[0] for row in thin) == wanted
    for row in thin:
        moved = base.get_parameter(row.name) != before[row.name]
        assert int(moved.sum()) == row.kept[0]
    assert all(row.kept == (row.of,) for row in done if len(row.shape) == 1)


def test_ties_among_equal_changes_are_broken_exactly():
    base = network()
    other = copy.deepcopy(base)
    with torch.no_grad():
        for p in other.parameters():
            p += 0.25
    done = merge_(base, [other], TIES(sparsity=0.7))
    thin = [row for row in done if len(row.shape) > 1]
    assert sum(row.kept[0] for row in thin) == round(0.3 * sum(row.of for row in thin))


def test_the_mean_over_masks_is_the_delta_and_the_variance_that_of_drawing_without_replacement():
    base = nn.Sequential(nn.Linear(40, 3, bias=False)).double()
    other = tuned(base, 1)
    delta = (other[0].weight - base[0].weight).detach()
    x = torch.randn(40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    trials = []
    for seed in range(1500):
        model = copy.deepcopy(base)
        merge_(model, [other], DARE(sparsity=0.9, seed=seed))
        trials.append((model[0].weight - base[0].weight).detach())
    drawn = torch.stack(trials)
    deviation = drawn.std(0) / 1500**0.5
    assert ((drawn.mean(0) - delta).abs() < 4.5 * deviation).all()
    # all 120 places share 12 kept ones; the sum over the whole weight of c = delta * x
    c, n, k = (delta * x).flatten(), 120, 12
    expected = n**2 / k * (1 - k / n) * float(c.var())
    assert float((drawn @ x).sum(1).var()) == pytest.approx(expected, rel=0.15)
    # which is nearly the p / (1 - p) * sum c^2 of independent draws
    assert expected == pytest.approx(9 * float(c.square().sum()), rel=0.12)


def test_the_divisor_counts():
    base = network()
    other = tuned(base, 1)
    one, two = copy.deepcopy(base), copy.deepcopy(base)
    done = merge_(one, [other], DARE(sparsity=0.75))
    merge_(two, [other], DARE(sparsity=0.75, rescale=1.0))
    for row in done:
        if len(row.shape) > 1:
            start = base.get_parameter(row.name)
            full, plain = one.get_parameter(row.name) - start, two.get_parameter(row.name) - start
            torch.testing.assert_close(full * row.kept[0] / row.of, plain)


def test_the_smallest_are_dropped_without_rescaling():
    base = network()
    other = tuned(base, 1)
    model = copy.deepcopy(base)
    merge_(model, [other], DARE(sparsity=0.8, drop="smallest"))
    weight, start, end = model[4].weight, base[4].weight, other[4].weight
    moved = weight != start
    assert torch.equal(weight[moved], end[moved])
    delta = (end - start).abs()
    assert delta[moved].min() >= delta[~moved].max()


def test_whole_columns_by_a_pattern():
    base = network()
    model = copy.deepcopy(base)
    merge_(
        model, [tuned(base, 1)], DARE(sparsity=0.5, pattern="block 12x1", exclude=("0.weight", "7.weight"))
    )
    moved = (model[4].weight != base[4].weight).float().mean(0)
    assert set(moved.tolist()) == {0.0, 1.0}
    assert int(moved.sum()) == 24


def test_several_models_with_weights_are_those_formulas():
    base = network()
    a, b = tuned(base, 1), tuned(base, 2)
    model = copy.deepcopy(base)
    merge_(model, [a, b], TaskArithmetic(scale=0.5), weights=[2.0, -1.0])
    for name, p in model.named_parameters():
        start = base.get_parameter(name)
        expected = start + 0.5 * (2 * (a.get_parameter(name) - start) - (b.get_parameter(name) - start))
        torch.testing.assert_close(p, expected)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            torch.testing.assert_close(buffer, (a.get_buffer(name) + b.get_buffer(name)) / 2)


def test_ties_keeps_the_largest_fifth_of_a_whole_model():
    base = network()
    a = tuned(base, 1)
    thick = [n for n, p in base.named_parameters() if p.dim() > 1]
    sizes = torch.cat([(a.get_parameter(n) - base.get_parameter(n)).abs().flatten() for n in thick])
    model = copy.deepcopy(base)
    merge_(model, [a], TIES())
    least = sizes.sort(descending=True).values[round(0.2 * len(sizes)) - 1]
    for n in thick:
        change = (a.get_parameter(n) - base.get_parameter(n)).abs()
        assert torch.equal(model.get_parameter(n) != base.get_parameter(n), change >= least)


def test_models_have_masks_of_their_own_and_the_seed_decides():
    base = network()
    a = tuned(base, 1)
    found = []
    for method in (DARE(seed=1), DARE(seed=1), DARE(seed=2)):
        model = copy.deepcopy(base)
        merge_(model, [a, a], method)
        found.append(state(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])
    one = copy.deepcopy(base)
    merge_(one, [a], DARE(seed=1), weights=[2.0])
    assert not same(found[0], state(one))


def test_zeros_of_the_base_stay_unless_told_otherwise():
    base = network()
    with torch.no_grad():
        base[4].weight.view(-1)[::2] = 0.0
        base[1].bias.zero_()
    a = tuned(base, 1)
    model = copy.deepcopy(base)
    done = merge_(model, [a], DARE(sparsity=0.5))
    assert not model[4].weight.view(-1)[::2].any()
    assert torch.equal(model[1].bias, a[1].bias)
    row = next(row for row in done if row.name == "4.weight")
    assert row.of == base[4].weight.count_nonzero()
    assert row.kept[0] == pytest.approx(row.of / 2, abs=1)
    assert done.zeros == base[4].weight.numel() // 2
    assert "288 changes fell on zeros of the base" in str(done)
    # unbiased among the places that may move
    scale = (model[4].weight - base[4].weight) / (a[4].weight - base[4].weight)
    moved = scale[model[4].weight != base[4].weight]
    torch.testing.assert_close(moved, torch.full_like(moved, row.of / row.kept[0]))
    merge_(base, [a], TaskArithmetic(scale=1.0), keep_zeros=False)
    assert same(state(base), state(a))


def test_tied_weights_are_merged_once():
    def tied():
        model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)).double()
        model[1].weight = model[0].weight
        return model

    base = tied()
    a = tuned(base, 3)
    only_the_other_name = {k: v for k, v in a.state_dict().items() if k == "1.weight"}
    for given in (a, a.state_dict(), only_the_other_name):
        model = copy.deepcopy(base)
        done = merge_(model, [given], DARE(sparsity=0.5))
        assert len(done.rows) == 1
        assert done.rows[0].kept == (33,)
        assert model[0].weight is model[1].weight


def bad(change):
    base = network()
    other = state(tuned(base, 1))
    change(other)
    return base, other


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("4.weight"), "the base has 4.weight, and tuned model 2 has not"),
        (lambda s: s.update(score=torch.ones(3)), "tuned model 2 has score, and the base has not"),
        (lambda s: s.update({"7.weight": torch.ones(4, 12)}), r"7.weight is \[3, 12\] in the base"),
        (lambda s: s["7.bias"].fill_(torch.nan), "7.bias holds NaN or infinity in tuned model 2"),
        (
            lambda s: s.update({"7.bias": torch.ones(3, dtype=torch.int8)}),
            "7.bias is torch.float64 in the base",
        ),
    ],
)
def test_what_does_not_match_is_named_and_nothing_changes(change, said):
    base, other = bad(change)
    before = state(base)
    with pytest.raises(ValueError, match=said):
        merge_(base, [tuned(base, 2), other], DARE())
    assert same(before, state(base))


def test_other_refusals():
    base = network()
    a = tuned(base, 1)
    for method, weights, said in (
        (DARE(exclude=("head.*",)), None, r"exclude: 'head.\*' matches no weight matrix"),
        (DARE(), [1.0, 2.0], "a weight for each: got 1 and 2"),
        (DARE(kept=10**6), None, "kept=1000000 was asked for"),
    ):
        before = state(base)
        with pytest.raises(ValueError, match=said):
            merge_(base, [a], method, weights=weights)
        assert same(before, state(base))
    with pytest.raises(TypeError, match="RigL does not merge"):
        merge_(base, [a], RigL())
    stored = nn.Sequential(nn.Linear(8, 8))
    to_sparse_(stored, RigL(sparsity=0.5))
    with pytest.raises(ValueError, match="0 holds only its kept connections"):
        merge_(stored, [stored], DARE())
    with pytest.raises(TypeError, match="no method that works while a model trains"):
        attach(base, None, DARE())


@pytest.mark.parametrize(
    "options", [{"drop": "largest"}, {"combine_by": "vote"}, {"rescale": 0.0}, {"rescale": 1.5}]
)
def test_impossible_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DARE(**options)


def test_overrides_are_shares_of_their_own():
    base = network()
    done = merge_(base, [tuned(base, 1)], DARE(sparsity=0.9, overrides={"7.*": 0.0, "4.*": 0.5}))
    kept = {row.name: row.kept[0] / row.of for row in done if len(row.shape) > 1}
    assert kept["7.weight"] == 1.0
    assert kept["4.weight"] == 0.5
    assert kept["0.weight"] == pytest.approx(0.1, abs=0.02)


def test_a_method_records_what_it_is():
    method = dataclasses.replace(DARE(), rescale=0.3)
    assert json.loads(json.dumps(method.record()))["rescale"] == 0.3
