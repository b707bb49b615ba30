"""Maestro orders components: conversions are exact, ranks shrink with the optimizer's state, prefixes are nested."""

import pytest
import torch
from torch import nn

import openwork as ow
from openwork import Maestro, OrderedConv2d, OrderedLinear, at_ranks, regularize, restructure_
from openwork.factor.maestro import narrow_, ordered, settled
from openwork.factorization import importance, lasso_slopes
from openwork.layouts.low_rank import LowRankLinear
from openwork.testing import batches, check_method, network
from openwork.testing.suite import SAID
from tests.hf.tiny import llama
from tests.regularized import Regularized, require_same_bits_after_stops


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_value_with_a_page():
    check_method(Maestro, SAID)


def test_conversion_gives_the_same_outputs_and_the_number_of_parameters():
    model, x = network().eval(), batches(1)[0][0]
    y = model(x)
    before = dict(model.named_modules())
    done = restructure_(model, Maestro())
    torch.testing.assert_close(model(x), y, rtol=1e-9, atol=1e-11)
    assert isinstance(model[0], OrderedConv2d)
    assert isinstance(model[4], OrderedLinear)
    for row in done.rows:
        out, inputs = row.shape[0], int(torch.tensor(row.shape[1:]).prod())
        assert row.after == min(out, inputs) * (out + inputs)
    assert torch.equal(model[4].bias, before["4"].bias)


@pytest.mark.parametrize("hierarchical", [True, False])
def test_the_slopes_of_the_lasso_are_those_of_autograd(hierarchical):
    left, right = random(6, 4).requires_grad_(), random(4, 9, seed=1).requires_grad_()
    total = 0.0
    for b in range(4):
        last = None if hierarchical else b + 1
        total = total + left[:, b:last].norm() + right[b:last].norm()
    wanted = torch.autograd.grad(total, (left, right))
    for slope, expected in zip(
        lasso_slopes(left.detach(), right.detach(), hierarchical), wanted, strict=True
    ):
        torch.testing.assert_close(slope, expected)
    zero = lasso_slopes(torch.zeros(3, 2), torch.zeros(2, 3), hierarchical)
    assert not any(bool(s.isnan().any()) or bool(s.any()) for s in zero)


def test_importance_never_rises():
    left, right = random(6, 5), random(5, 9, seed=1)
    worth = importance(left, right)
    assert (worth.diff() <= 0).all()
    for b in range(5):
        assert float(worth[b]) == pytest.approx(float(left[:, b:].norm() * right[b:].norm()))


class Run(Regularized):
    def __init__(self, method, resume=None):
        model = network()
        restructure_(model, method)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        super().__init__(model, optimizer, regularize(model, optimizer, method, resume=resume), batches(12))


def test_every_pair_of_layer_and_width_has_its_turn():
    run = Run(Maestro(penalty=0.0))
    layers = ordered(run.model)
    pairs = {(n, w) for n, layer in layers.items() for w in range(1, layer.rank + 1)}
    assert len(pairs) == 3 + 12 + 3
    for _ in range(2):
        seen = []
        for _ in range(len(pairs)):
            cut = {n: layer.width for n, layer in layers.items() if layer.width is not None}
            assert len(cut) == 1
            seen += cut.items()
            run.learn(1)
        assert set(seen) == pairs
    layer, x = run.model[4], random(4, 48)
    layer.width = 5
    cut = x @ (layer.left[:, :5] @ layer.right[:5]).T + layer.bias
    torch.testing.assert_close(layer.train()(x), cut)
    torch.testing.assert_close(layer.eval()(x), x @ layer.weight.T + layer.bias)
    layer, x = run.model[0], random(2, 2, 6, 6)
    layer.width = 2
    first = (layer.left[:, :2] @ layer.right[:2]).view(3, 2, 3, 3)
    torch.testing.assert_close(layer.train()(x), nn.functional.conv2d(x, first, layer.bias))


def test_the_penalty_is_added_to_the_gradients():
    results = []
    for penalty in (0.0, 0.3):
        run = Run(Maestro(penalty=penalty))
        before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
        run.learn(1)
        results.append({n: (before[n] - p.detach()) / 0.05 for n, p in run.model.named_parameters()})
    for name in ("0", "4", "7"):
        left, right = before[f"{name}.left"], before[f"{name}.right"]
        for part, slope in zip(("left", "right"), lasso_slopes(left, right), strict=True):
            pulled = results[1][f"{name}.{part}"] - results[0][f"{name}.{part}"]
            torch.testing.assert_close(pulled, 0.3 * slope)


def test_ranks_shrink_and_take_the_momentum_along():
    run = Run(Maestro(penalty=0.0, shrink=3, least=6.0)).learn(2)
    layer = run.model[4]
    held = run.optimizer.state[layer.left]["momentum_buffer"]
    rank = layer.rank
    run.learn(1, 2)
    assert 1 <= layer.rank < rank
    assert layer.left.shape == (12, layer.rank)
    assert layer.right.shape == (layer.rank, 48)
    assert run.optimizer.state[layer.left]["momentum_buffer"].shape == layer.left.shape
    assert held.shape == (12, rank)
    assert run.regularizer.method.measures(run.regularizer)["rank of 4"] == layer.rank
    run.learn(5, 3)


def test_what_is_below_the_least_importance_goes():
    run = Run(Maestro(shrink=1, least=5.0))
    wanted = {n: int((importance(m.left, m.right) >= 5.0).sum()) for n, m in ordered(run.model).items()}
    run.regularizer.method.after_step(run.regularizer, 1)
    assert {n: m.rank for n, m in ordered(run.model).items()} == {n: max(1, r) for n, r in wanted.items()}
    assert any(r < 12 for r in wanted.values())


def test_a_run_goes_on_with_the_same_bits_though_ranks_have_changed():
    method = Maestro(penalty=0.05, shrink=3, least=6.0)
    require_same_bits_after_stops(lambda resume=None: Run(method, resume=resume), 12, (1, 5, 9))


def test_prefixes_are_nested_and_of_the_size_asked_for():
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 20)).double()
    for m in (model[0], model[2]):
        m.weight.data = random(*m.weight.shape) / 5
    restructure_(model, Maestro())
    full = model.eval()(random(3, 30))
    ranks = []
    for ratio in (0.2, 0.5, 0.8):
        small = at_ranks(model, ratio)
        assert not ordered(small)
        weights = sum(p.numel() for n, p in small.named_parameters() if not n.endswith("bias"))
        assert weights <= ratio * (30 * 40 + 40 * 20)
        assert isinstance(small[0], LowRankLinear)
        assert torch.equal(small[0].left, model[0].left[:, : small[0].rank])
        ranks.append((small[0].rank, small[2].rank if isinstance(small[2], LowRankLinear) else 20))
    assert ranks == sorted(ranks)
    assert torch.equal(model(random(3, 30)), full)
    torch.testing.assert_close(settled(model)(random(3, 30)), full)
    assert all(type(m) is not OrderedLinear for m in model.modules())


def test_convolutions_become_plain_again():
    for conv in (nn.Conv2d(3, 9, 3, stride=2, padding=1), nn.Conv2d(4, 5, (2, 3), bias=False)):
        conv.double()
        x = random(2, conv.in_channels, 9, 9)
        layer = OrderedConv2d.from_conv(conv)
        torch.testing.assert_close(layer(x), conv(x))
        plain = layer.plain()
        assert type(plain) is nn.Conv2d
        torch.testing.assert_close(plain(x), conv(x))
        narrow_(layer, 2)
        thin = layer.plain()
        assert type(thin) is nn.Sequential
        torch.testing.assert_close(thin(x), layer(x))
        with pytest.raises(ValueError, match="no ordered layers"):
            at_ranks(nn.Sequential(conv), 0.5)


def test_a_linear_layer_on_white_inputs_recovers_the_singular_values():
    """The target has singular values 5, 4, 3, 2, 1: the first components must become those, in that order."""
    g = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(random(12, 5))
    v, _ = torch.linalg.qr(random(10, 5, seed=1))
    target = (u * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)) @ v.T
    model = nn.Sequential(nn.Linear(10, 12, bias=False)).double()
    model[0].weight.data = random(12, 10, seed=2) / 3
    method = Maestro(penalty=2e-3, shrink=200, least=1e-3, seed=1)
    restructure_(model, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    regularizer = regularize(model, optimizer, method)
    for step in range(3000):
        if step == 2400:
            optimizer.param_groups[0]["lr"] = 0.02
        x = torch.randn(64, 10, generator=g, dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - x @ target.T).square().mean().backward()
        optimizer.step()
    layer = model[0]
    assert layer.rank == 5  # the rank of the target is found
    left, right = layer.left.detach(), layer.right.detach()
    pieces = [float(left[:, b].norm() * right[b].norm()) for b in range(5)]
    assert pieces == pytest.approx([5, 4, 3, 2, 1], abs=0.25)
    for b in range(1, 5):
        best = (u[:, :b] * torch.linspace(5, 6 - b, b, dtype=torch.float64)) @ v[:, :b].T
        assert float((left[:, :b] @ right[:b] - best).norm()) < 0.6
    assert regularizer.step_count == 3000


def test_transformers_models():
    model = llama().eval()
    tokens = torch.randint(4, 40, (2, 8), generator=torch.Generator().manual_seed(0))
    y = model(tokens).logits
    restructure_(model, Maestro(exclude=("lm_head.weight",)))
    torch.testing.assert_close(model(tokens).logits, y, rtol=1e-4, atol=1e-5)
    assert at_ranks(model, 0.5)(tokens).logits.shape == y.shape


def test_refusals():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"call ow.restructure_"):
        regularize(model, optimizer, Maestro())
    for wrong in ({"penalty": -1.0}, {"least": -1.0}, {"shrink": 0}):
        with pytest.raises(ValueError, match="penalty and least"):
            Maestro(**wrong)
    run = Run(Maestro())
    state = run.regularizer.state_dict()
    del state["state"]["rank 4"]
    with pytest.raises(ValueError, match="only one of model and saved state has 4"):
        Run(Maestro(), resume=state)
    assert ow.Maestro is Maestro
