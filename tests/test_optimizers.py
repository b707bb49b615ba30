"""Every optimizer, and what people put around one, on layers that hold only their kept connections."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.func import functional_call, grad, jacrev, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from openwork import GMP, SET, RigL, SparseLinear, StaticRandom, attach, plan
from tests.test_stored_training import METHOD, data, network, stored, train

FLAGS = {
    "adam amsgrad": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "adam foreach": lambda p: optim.Adam(p, 0.01, foreach=True),
    "adam one by one": lambda p: optim.Adam(p, 0.01, foreach=False),
    "adam fused": lambda p: optim.Adam(p, 0.01, fused=True),
    "adam fused amsgrad": lambda p: optim.AdamW(p, 0.01, fused=True, amsgrad=True),
    "adam maximize": lambda p: optim.Adam(p, 1e-4, maximize=True),
    "adam tensor lr": lambda p: optim.Adam(p, torch.tensor(0.01)),
    "sgd fused": lambda p: optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "sgd nesterov": lambda p: optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd foreach": lambda p: optim.SGD(p, 0.05, momentum=0.9, foreach=True),
    "adagrad fused": lambda p: optim.Adagrad(p, 0.05, fused=True),
    "rmsprop centered": lambda p: optim.RMSprop(p, 0.01, centered=True, momentum=0.9),
    "radam decoupled": lambda p: optim.RAdam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "nadam": lambda p: optim.NAdam(p, 0.01, momentum_decay=0.01),
    "adamax": lambda p: optim.Adamax(p, 0.01),
    "adadelta": lambda p: optim.Adadelta(p, 0.5),
    "asgd": lambda p: optim.ASGD(p, 0.05),
    "rprop": lambda p: optim.Rprop(p, 0.01),
}


class Nested(optim.Optimizer):
    """As a third party may write one: state in mappings inside mappings, lists and flags beside it."""

    def __init__(self, parameters, lr=0.01):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update({"moments": {"first": torch.zeros_like(p)}, "kind": "nested", "count": 0})
                state["count"] += 1
                state["moments"]["first"].mul_(0.9).add_(p.grad)
                p.sub_(group["lr"] * state["moments"]["first"])
        return loss


FLAGS["nested"] = Nested


@pytest.mark.parametrize("make", FLAGS.values(), ids=FLAGS)
def test_stored_is_masked(make):
    results = []
    for build in (network, stored):
        model = build(torch.float64)
        optimizer = make(model.parameters())
        sparsifier = attach(model, optimizer, METHOD)
        results.append((train(model, optimizer), sparsifier.masks))
        assert sparsifier.updates == 2
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-9)
    assert all(torch.equal(mask, results[1][1][name]) for name, mask in results[0][1].items())


def test_factored_moments_are_of_the_stored_vector():
    """Adafactor factors the second moment of a matrix and not that of a vector, so storages differ; the topology of SET does not
    depend on it, and no state is of the dense size.
    """
    model = stored()
    optimizer = optim.Adafactor(model.parameters(), lr=0.05)
    sparsifier = attach(model, optimizer, METHOD)
    losses = train(model, optimizer)
    assert losses[-1] < losses[0]
    assert sparsifier.updates == 2
    sizes = {v.numel() for state in optimizer.state.values() for v in state.values() if v.dim()}
    assert sizes <= {1, *(p.numel() for p in model.parameters())}


def test_lbfgs_is_masked_while_the_topology_stands():
    losses = []
    for build in (network, stored):
        model = build(torch.float64)
        optimizer = optim.LBFGS(model.parameters(), lr=0.1, max_iter=3, line_search_fn="strong_wolfe")
        attach(model, optimizer, METHOD)
        losses.append(train(model, optimizer, steps=3))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("make", [Nested, FLAGS["adam fused amsgrad"], FLAGS["adam foreach"]])
def test_survivors_keep_their_state_and_new_ones_have_none(make):
    model = stored()
    optimizer = make(model.parameters())
    sparsifier = attach(model, optimizer, METHOD)
    train(model, optimizer, steps=3)
    c = sparsifier.connections["0.weight"]
    before, states = c.positions.clone(), [holder[key].clone() for holder, key in c._states()]
    fresh = c.positions.new_tensor(sorted(set(range(c.numel)) - set(before.tolist()))[:7])
    survivors = before[::2]
    now = torch.cat([survivors, fresh]).sort().values
    c.replace(now)
    assert states
    for old, (holder, key) in zip(states, c._states(), strict=True):
        assert torch.equal(holder[key][torch.isin(now, survivors)], old[::2])
        assert not holder[key][torch.isin(now, fresh)].any()


@pytest.mark.parametrize("form", ["masked", "stored"])
@pytest.mark.parametrize("first", [0, 1])
def test_an_update_replaces_the_step_of_every_optimizer(form, first):
    method = RigL(sparsity=0.7, allocation="uniform", steps=12, every=3, until=1.0)
    model = network() if form == "masked" else stored(method=method)
    groups = list(model[:2].parameters()), list(model[2:].parameters())
    optimizers = [optim.SGD(group, 0.1) for group in groups]
    sparsifier = attach(model, optimizers, method)
    x, y = data()
    for step in range(1, 10):
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        before = [p.detach().clone() for p in (model[0].bias, model[4].bias)]
        for optimizer in (optimizers[first], optimizers[1 - first]):
            optimizer.step()
        stood = [torch.equal(p, b) for p, b in zip((model[0].bias, model[4].bias), before, strict=True)]
        assert stood == [step % 3 == 0] * 2
        assert all(p.grad is not None for p in (model[0].bias, model[4].bias))
    assert sparsifier.updates == 3


def test_steps_of_a_second_optimizer_are_counted_across_an_interruption():
    method = RigL(sparsity=0.7, allocation="uniform", steps=20, every=4, until=1.0)

    def run(first, last, model, optimizers):
        x, y = data()
        for step in range(first, last):
            for optimizer in optimizers:
                optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizers[0].step()
            if step % 2:
                optimizers[1].step()

    def begun():
        model = stored(method=method)
        return model, [optim.Adam(model[:2].parameters()), optim.Adam(model[2:].parameters())]

    model, optimizers = begun()
    attach(model, optimizers, method)
    run(0, 18, model, optimizers)
    straight = model.state_dict()
    model, optimizers = begun()
    sparsifier = attach(model, optimizers, method)
    run(0, 7, model, optimizers)
    saved = copy.deepcopy((model.state_dict(), [o.state_dict() for o in optimizers], sparsifier.state_dict()))
    model, optimizers = begun()
    model.load_state_dict(saved[0])
    for optimizer, state in zip(optimizers, saved[1], strict=True):
        optimizer.load_state_dict(state)
    attach(model, optimizers, method, resume=saved[2])
    run(7, 18, model, optimizers)
    assert all(torch.equal(t, straight[name]) for name, t in model.state_dict().items())


def test_frozen_weights_are_left_alone_and_the_plan_says_so():
    for build in (network, lambda: stored(method=METHOD)):
        model = build()
        held = model[2].weight if type(model[2]) is nn.Linear else model[2].weight_values
        held.requires_grad_(False)
        before = held.detach().clone()
        (row,) = [row for row in plan(model, METHOD) if row.name == "2.weight"]
        assert (row.sparse, row.why) == (False, "excluded: frozen")
        optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        sparsifier = attach(model, optimizer, METHOD)
        train(model, optimizer)
        assert "2.weight" not in sparsifier.masks
        assert torch.equal(held, before)


@pytest.mark.parametrize("form", ["masked", "stored"])
def test_what_is_frozen_later_is_not_rewired_from_then_on(form):
    method = RigL(sparsity=0.7, allocation="uniform", steps=12, every=2, until=1.0)
    model = network() if form == "masked" else stored(method=method)
    optimizer = optim.SGD(model.parameters(), 0.1)
    sparsifier = attach(model, optimizer, method)
    train(model, optimizer, steps=4)
    for p in model[2].parameters():
        p.requires_grad_(False)
        p.grad = None
    before = sparsifier.masks
    train(model, optimizer, steps=4)
    after = sparsifier.masks
    assert torch.equal(before["2.weight"], after["2.weight"])
    assert not torch.equal(before["0.weight"], after["0.weight"])


def test_a_frozen_weight_that_is_included_stays_where_it_starts():
    method = SET(sparsity=0.7, allocation="uniform", steps=12, every=4, include=("2.weight",))
    model = network()
    model[2].weight.requires_grad_(False)
    (row,) = [row for row in plan(model, method) if row.name == "2.weight"]
    assert row.sparse
    assert row.why == "uniform; frozen: not rewired"
    optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    sparsifier = attach(model, optimizer, method)
    before = sparsifier.masks
    train(model, optimizer)
    assert torch.equal(before["2.weight"], sparsifier.masks["2.weight"])
    assert not torch.equal(before["0.weight"], sparsifier.masks["0.weight"])


@pytest.mark.parametrize("form", ["masked", "stored"])
def test_an_average_that_follows_takes_every_change(form):
    """Each connection's average is that of its own weights since it was last grown; nothing else is mixed in."""
    model = network(torch.float64) if form == "masked" else stored(torch.float64)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    sparsifier = attach(model, optimizer, METHOD)
    sparsifier.follow(average)
    expected = None
    for _ in range(11):
        train(model, optimizer, steps=1)
        seen = model[2].weight.detach()
        old = seen if expected is None else expected * sparsifier.masks["2.weight"]
        average.update_parameters(model)
        expected = 0.9 * old + 0.1 * seen if expected is not None else seen.clone()
        torch.testing.assert_close(average.module[2].weight.detach(), expected)
        assert not average.module[2].weight[~sparsifier.masks["2.weight"]].any()
    assert sparsifier.updates == 2
    average.module(data(torch.float64)[0])


def test_a_copy_that_cannot_follow_is_refused():
    model, other = stored(), network()
    sparsifier = attach(model, optim.SGD(model.parameters(), 0.1), METHOD)
    with pytest.raises(ValueError, match=r"follows needs 0.weight \[20, 12\] in the storage"):
        sparsifier.follow(other)


def test_a_scaler_skips_what_overflows():
    """Loss scaling on the CPU: masked and stored take the same steps, and a step without finite gradients changes nothing."""
    losses = []
    for build in (network, stored):
        model = build(torch.float32)
        optimizer = optim.SGD(model.parameters(), lr=0.05)
        sparsifier = attach(model, optimizer, METHOD)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        x, y = data()
        found = []
        for _ in range(12):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = 1e3 * F.cross_entropy(model(x).float(), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            before = [p.detach().clone() for p in model.parameters()]
            steps = sparsifier.step_count
            scaler.step(optimizer)
            if sparsifier.step_count == steps:
                assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
            scaler.update()
            found.append(sparsifier.step_count)
        assert found[0] == 0  # the scale was absurd
        assert found[-1] > 0
        losses.append(found)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "method", [METHOD, RigL(sparsity=0.7, allocation="uniform", steps=12, every=4, until=1.0)]
)
def test_accumulated_gradients(method):
    results = []
    for build in (network, lambda d: stored(d, method)):
        model = build(torch.float64)
        optimizer = optim.Adam(model.parameters(), lr=0.02)
        sparsifier = attach(model, optimizer, method)
        x, y = data(torch.float64)
        for _ in range(8):
            optimizer.zero_grad()
            for part in range(4):
                (F.cross_entropy(model(x[part::4]), y[part::4]) / 4).backward()
            optimizer.step()
        results.append(sparsifier.masks)
    assert sparsifier.updates >= 1
    assert all(torch.equal(mask, results[1][name]) for name, mask in results[0].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transforms_of_torch_func(dtype):
    """They need operators that they know, and get them: gradients of each sample, Jacobians, ensembles."""
    layer = SparseLinear(6, 5, sparsity=0.4, dtype=dtype)
    dense = layer.to_linear()
    x = torch.randn(3, 6, dtype=dtype)

    def loss(parameters, x, model):
        return functional_call(model, parameters, (x,)).tanh().square().sum()

    ours, theirs = dict(layer.named_parameters()), dict(dense.named_parameters())
    positions = layer.topology.positions()
    gradient, expected = grad(loss)(ours, x, layer), grad(loss)(theirs, x, dense)
    torch.testing.assert_close(gradient["weight_values"], expected["weight"].flatten()[positions])
    torch.testing.assert_close(gradient["bias"], expected["bias"])
    each = vmap(grad(loss), in_dims=(None, 0, None))(ours, x, layer)["weight_values"]
    expected_each = vmap(grad(loss), in_dims=(None, 0, None))(theirs, x, dense)["weight"]
    torch.testing.assert_close(each, expected_each.flatten(1)[:, positions])
    several = {name: torch.stack([p, 2 * p]) for name, p in ours.items()}
    losses = vmap(loss, in_dims=(0, None, None))(several, x, layer)
    torch.testing.assert_close(losses[0], loss(ours, x, layer))
    torch.testing.assert_close(jacrev(loss)(ours, x, layer)["bias"], expected["bias"])
    layer(x).tanh().square().sum().backward()  # and nothing of a transform is left behind
    torch.testing.assert_close(layer.weight_values.grad, gradient["weight_values"])


def test_an_optimizer_of_its_own_kind_is_refused_with_the_way_out():
    class Foreign:
        param_groups = ()

    with pytest.raises(
        TypeError, match=r"got Foreign\. .*optimizer=None to a masked model.*sparsifier\.step\(\)"
    ):
        attach(network(), Foreign(), METHOD)


@pytest.mark.parametrize("method", [GMP(sparsity=0.7, steps=12), StaticRandom(sparsity=0.7)])
def test_one_process_looks_out_for_nothing(method):
    model = stored(method=method)
    attach(model, optim.SGD(model.parameters(), 0.1), method)
    assert not any(layer._forward_pre_hooks for layer in model)
