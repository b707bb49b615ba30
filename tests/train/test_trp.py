"""TRP cuts ranks while training; what it has trained can be decomposed, and what it has not cannot."""

import dataclasses
import io

import pytest
import torch
from torch import nn

from openwork import TRP, Decompose, Linear, regularize, restructure_
from openwork.factorization import FORMS, as_matrix, as_weight, energy_rank, nuclear_subgradient, spectrum
from openwork.layouts.low_rank import LowRankLinear
from openwork.regularizer import Regularization
from openwork.testing import batches, check_method, network
from openwork.testing.suite import SAID
from tests.hf.tiny import gpt2
from tests.regularized import Regularized

METHOD = TRP(steps=12, period=3, energy=0.9, nuclear=0.01)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("cls", [TRP, Decompose])
def test_values_with_a_page(cls):
    check_method(cls, SAID)


@pytest.mark.parametrize(
    ("form", "shape"), [("channel", (5, 24)), ("spatial", (6, 20)), ("decoupled", (5, 3, 8))]
)
def test_a_convolution_as_a_matrix_and_back(form, shape):
    w = random(5, 3, 2, 4)
    matrix = as_matrix(w, form)
    assert matrix.shape == shape
    assert torch.equal(as_weight(matrix, w.shape, form), w)
    if form == "spatial":
        assert matrix[1 * 2 + 1, 3 * 4 + 2] == w[3, 1, 1, 2]


@pytest.mark.parametrize("shape", [(7, 5), (5, 9), (6, 6)])
def test_the_inner_product_with_the_subgradient_is_the_nuclear_norm(shape):
    w = random(*shape)
    t = nuclear_subgradient(w)
    assert float((t * w).sum()) == pytest.approx(float(torch.linalg.svdvals(w).sum()))
    assert float(torch.linalg.svdvals(t)[0]) == pytest.approx(1.0)
    thin = random(shape[0], 2) @ random(2, shape[1], seed=1)
    assert int((torch.linalg.svdvals(nuclear_subgradient(thin)) > 0.5).sum()) == 2
    assert not nuclear_subgradient(torch.zeros(3, 4)).any()
    several = torch.stack([w, torch.zeros_like(w), 3 * random(*shape, seed=2)])
    each = torch.stack([nuclear_subgradient(one) for one in several])
    torch.testing.assert_close(nuclear_subgradient(several), each)


def test_the_rank_of_an_energy():
    s = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert [energy_rank(s, e) for e in (0.0, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert energy_rank(torch.zeros(3), 0.5) == 1
    several = random(4, 6, 5)
    squares = torch.linalg.svdvals(several).square().sum(0)
    torch.testing.assert_close(spectrum(torch.linalg.svdvals(several)).square(), squares)
    assert float(squares.sum()) == pytest.approx(float(several.square().sum()))
    torch.testing.assert_close(spectrum(s), s)


class Run(Regularized):
    def __init__(self, method=METHOD, resume=None, model=None):
        model = network() if model is None else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        super().__init__(model, optimizer, regularize(model, optimizer, method, resume=resume), batches(12))


def test_a_step_cuts_then_pulls():
    run = Run(dataclasses.replace(METHOD, form="spatial"))
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    x, y = batches(1)[0]
    nn.functional.cross_entropy(run.model(x), y).backward()
    gradients = {n: p.grad.clone() for n, p in run.model.named_parameters()}
    run.optimizer.step()
    for name, p in run.model.named_parameters():
        if name not in ("0.weight", "4.weight", "7.weight"):
            torch.testing.assert_close(p, before[name] - 0.05 * gradients[name])
            continue
        matrix = as_matrix(before[name], "spatial")
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        rank = int((s.square().cumsum(0) / s.square().sum() < 0.9).sum()) + 1
        assert rank < len(s)
        cut = (u[:, :rank] * s[:rank]) @ v[:rank]
        pull = 0.01 * u[:, :rank] @ v[:rank]
        expected = cut - 0.05 * (as_matrix(gradients[name], "spatial") + pull)
        torch.testing.assert_close(p.detach(), as_weight(expected, p.shape, "spatial"))


def test_at_the_end_weights_are_of_low_rank_and_cutting_again_changes_nothing():
    run, cut_some = Run().learn(12), False
    for name, rank in run.regularizer.method.measures(run.regularizer).items():
        weight = run.model.get_parameter(name.removeprefix("rank of ")).detach().flatten(1)
        s = torch.linalg.svdvals(weight)
        assert int((s > 1e-10).sum()) == rank
        cut_some |= rank < len(s)
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        torch.testing.assert_close((u[:, : int(rank)] * s[: int(rank)]) @ v[: int(rank)], weight)
    assert cut_some
    assert "rank of 4.weight" in run.regularizer.summary()


def test_filters_are_cut_to_one_rank_each():
    run = Run(dataclasses.replace(METHOD, form="decoupled", energy=0.6)).learn(12)
    ranks = run.regularizer.method.measures(run.regularizer)
    weight = run.model[0].weight.detach().flatten(2)
    found = (torch.linalg.svdvals(weight) > 1e-10).sum(1)
    assert found.tolist() == [int(ranks["rank of 0.weight"])] * len(weight)
    done = restructure_(run.model, Decompose(value=1e-8, form="decoupled", exclude=("4.*", "7.*")))
    assert done.after == int(found[0]) * 3 * (2 + 9) < done.before


def test_the_ramp_begins_with_the_whole_energy():
    run = Run(
        dataclasses.replace(METHOD, energy=Linear(start=1.0, stop=0.5, begin=0.5, until=1.0), nuclear=0.0)
    )
    plain = Run(dataclasses.replace(METHOD, energy=1.0, nuclear=0.0, steps=100))
    run.learn(6)
    plain.learn(6)
    for p, q in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(p, q)
    ranks = run.learn(6, 6).regularizer.method.measures(run.regularizer)
    assert max(ranks.values()) < 8


def test_a_run_goes_on_with_the_same_bits():
    straight = Run().learn(12)
    for stop in (1, 7):
        run = Run().learn(stop)
        file = io.BytesIO()
        torch.save([run.model.state_dict(), run.optimizer.state_dict(), run.regularizer.state_dict()], file)
        file.seek(0)
        model, optimizer, state = torch.load(file, weights_only=True)
        again = Run(resume=state)
        again.model.load_state_dict(model)
        again.optimizer.load_state_dict(optimizer)
        again.learn(12 - stop, stop)
        for name, t in straight.model.state_dict().items():
            assert torch.equal(t, again.model.state_dict()[name])


def test_transposed_weights_and_a_tied_head():
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = regularize(model, optimizer, TRP(steps=1, energy=0.5, nuclear=1e-3))
    tokens = torch.randint(4, 40, (2, 10), generator=torch.Generator().manual_seed(0))
    head = model.transformer.wte.weight.detach().clone()
    model(input_ids=tokens, labels=tokens).loss.backward()
    gradient = model.transformer.wte.weight.grad.clone()
    optimizer.step()
    ranks = regularizer.method.measures(regularizer)
    assert len(ranks) == 8
    for name, rank in ranks.items():
        s = torch.linalg.svdvals(model.get_parameter(name.removeprefix("rank of ")).detach().double())
        assert int((s > 1e-5 * s[0]).sum()) == rank < 20
    torch.testing.assert_close(model.transformer.wte.weight.detach(), head - 0.1 * gradient)


def test_refusals():
    model = network()
    with torch.no_grad():
        model[4].weight.view(-1)[::2] = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"4.weight has pruned weights, which a cut of its rank would fill"):
        regularize(model, optimizer, METHOD)
    assert not optimizer._optimizer_step_pre_hooks
    with pytest.raises(ValueError, match="does not know its length"):
        regularize(network(), optimizer, TRP())
    with pytest.raises(TypeError, match="Decompose is no regularization"):
        regularize(network(), optimizer, Decompose())
    saved = Run().regularizer.state_dict()
    with pytest.raises(ValueError, match="of another run"):
        Run(dataclasses.replace(METHOD, period=4), resume=saved)
    for wrong in ({"period": 0}, {"nuclear": -1.0}, {"form": "diagonal"}):
        with pytest.raises(ValueError, match="period is at least 1"):
            TRP(**wrong)
    assert issubclass(TRP, Regularization)


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3),
    "strided": nn.Conv2d(5, 7, (3, 5), stride=(2, 1), padding=(1, 2), bias=False),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2, padding=1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_of_low_rank_is_decomposed_exactly(kind, form):
    conv = CONVOLUTIONS[kind].double()
    shape = conv.weight.shape
    out, inputs, kh, kw = shape
    matrix = as_matrix(conv.weight.detach(), form)
    *several, rows, columns = matrix.shape
    thin = random(*several, rows, 2) @ random(*several, 2, columns, seed=1)
    conv.weight = nn.Parameter(as_weight(thin, shape, form))
    model = nn.Sequential(conv, nn.Flatten())
    x = random(2, inputs, 11, 12)
    y = model(x)
    done = restructure_(model, Decompose(value=1e-6, form=form))
    torch.testing.assert_close(model(x), y, rtol=1e-7, atol=1e-7)
    wanted = (
        2
        * {
            "channel": inputs * kh * kw + out,
            "spatial": inputs * kh + out * kw,
            "decoupled": out * (inputs + kh * kw),
        }[form]
    )
    assert done.after == wanted < done.before
    assert sum(m.weight.numel() for m in model[0]) == wanted


def test_linear_layers_and_what_stays():
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10), nn.Conv2d(4, 4, 3, groups=2)).double()
    with torch.no_grad():
        model[0].weight.copy_(random(30, 3) @ random(3, 20, seed=1))
    x = random(5, 20)
    y = model[:2](x)
    done = restructure_(model, Decompose(energy=0.999999))
    assert isinstance(model[0], LowRankLinear)
    assert model[0].rank == 3
    torch.testing.assert_close(model[:2](x), y, rtol=1e-6, atol=1e-6)
    assert {row.name: row.why for row in done.rows}["1.weight"].startswith("stays: rank ")
    assert {row.name: row.why for row in done.rows}[
        "2.weight"
    ] == "stays: in groups, or padded with more than zeros"
    with pytest.raises(ValueError, match="value is at least 0"):
        Decompose(value=-1.0)
