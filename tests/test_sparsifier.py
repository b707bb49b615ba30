"""Zeros stay zero under any optimizer and in any loop, and a run that was interrupted ends with the same
bits.
"""

import copy
import dataclasses
import io
import math
import warnings

import pytest
import torch
from torch import nn

from openwork.prune.magnitude import Magnitude
from openwork.pruner import sparsify_
from openwork.sparsifier import SparsifierWarning, attach
from openwork.storage import to_sparse_
from openwork.testing import network as convnet
from openwork.train.gmp import GMP
from openwork.train.keep_zeros import KeepZeros
from openwork.train.rigl import RigL
from openwork.train.set import SET
from openwork.train.static_random import StaticRandom

F = nn.functional
STEPS = 14
RIGL = RigL(sparsity=0.7, steps=STEPS, every=3)
AFTER = RigL(sparsity=0.7, steps=STEPS, every=3, replace=False)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(seed=0, dtype=torch.float64, bias=True):
    model = nn.Sequential(
        nn.Linear(9, 16, bias=bias),
        nn.Tanh(),
        nn.Linear(16, 11, bias=bias),
        nn.Tanh(),
        nn.Linear(11, 3, bias=bias),
    )
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.4)
    return model.to(dtype)


def batch(step, dtype=torch.float64):
    g = generator(1000 + step)
    return torch.randn(7, 9, generator=g).to(dtype), torch.randint(3, (7,), generator=g)


def learn(model, optimizer, step, dtype=torch.float64):
    x, y = batch(step, dtype)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


def learn_in_closure(model, optimizer, step):
    x, y = batch(step)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return optimizer.step(closure).item()


def holds(sparsifier):
    """Every weight, gradient and optimizer state is exactly zero outside the masks."""
    for c in sparsifier.connections.values():
        held = {"weight": c.weight.parameter.detach(), "gradient": c.weight.parameter.grad}
        if c.optimizer is not None:
            held |= c.optimizer.state[c.weight.parameter]
        for what, t in held.items():
            if isinstance(t, torch.Tensor) and t.shape == c.weight.parameter.shape:
                outside = c.weight.oriented(t)[~c.mask]
                if what != "gradient":  # connections that have just left may still have one
                    assert not outside.any(), f"{what} of {c.name}"
    return True


def matrices(model):
    return [p for p in model.parameters() if p.dim() == 2]


optim = torch.optim
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adam foreach": lambda p: optim.Adam(p, lr=0.01, foreach=True),
    "adam fused": lambda p: optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.05),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
    "adadelta": optim.Adadelta,
    "adamax": lambda p: optim.Adamax(p, lr=0.01),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "asgd": lambda p: optim.ASGD(p, lr=0.05),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "lbfgs": lambda p: optim.LBFGS(p, lr=0.1, max_iter=3),
    "muon": lambda p: optim.Muon([q for q in p if q.dim() == 2], lr=0.02),
}


def test_no_optimizer_of_torch_is_forgotten():
    classes = {v for v in vars(optim).values() if isinstance(v, type) and issubclass(v, optim.Optimizer)}
    tried = {
        type(make(mlp().parameters() if n != "muon" else matrices(mlp()))) for n, make in OPTIMIZERS.items()
    }
    assert classes - tried == {optim.Optimizer, optim.SparseAdam}


def made(name, model):
    return OPTIMIZERS[name](list(model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_zero_under_every_optimizer(name):
    for method in (RIGL, GMP(sparsity=0.8, steps=STEPS, every=2)):
        model = mlp()
        optimizer = made(name, model)
        sparsifier = attach(model, optimizer, method)
        step = learn_in_closure if name == "lbfgs" else learn
        losses = []
        for t in range(STEPS):
            losses.append(step(model, optimizer, t % 2))
            assert holds(sparsifier)
        assert sparsifier.kept == sparsifier.plan.kept
        assert sparsifier.updates >= 3
        assert sparsifier.skipped == 0
        assert all(map(math.isfinite, losses))
        for p in matrices(model):
            assert int((p != 0).sum()) > 0


def test_sparse_adam_gets_a_clear_error():
    model = nn.Sequential(nn.Embedding(8, 5, sparse=True))
    optimizer = optim.SparseAdam(model.parameters())
    attach(model, optimizer, StaticRandom(sparsity=0.5, include=("*",)))
    with pytest.raises(ValueError, match=r"gradient of 0.weight is a torch.sparse tensor"):
        model(torch.tensor([1, 2])).sum().backward()


# Adafactor and Muon look at the matrix as a whole, LBFGS and Rprop are covered below
SEPARABLE = [n for n in OPTIMIZERS if n not in ("adafactor", "muon", "lbfgs", "adam fused")]


@pytest.mark.parametrize("name", SEPARABLE)
def test_masked_and_stored_take_the_same_steps(name):
    compare(RIGL, name)


METHODS = [
    StaticRandom(sparsity=0.7, steps=STEPS),
    StaticRandom(sparsity=0.8, steps=STEPS, repair=True, init="kaiming"),
    SET(sparsity=0.7, steps=STEPS, every=3),
    SET(sparsity=0.7, steps=STEPS, every=3, grown_std=0.1),
    AFTER,
    RigL(sparsity=0.7, steps=STEPS, every=3, grow="random"),
    RigL(sparsity=0.5, steps=STEPS, every=3, pattern="block 1x3"),
    RigL(sparsity=0.5, steps=STEPS, every=3, pattern="fan-in"),
    RigL(sparsity=0.5, steps=STEPS, every=3, pattern="1:3", exclude=("[24].*",)),
    SET(sparsity=0.5, steps=STEPS, every=3, pattern="groups 0"),
    GMP(sparsity=0.8, steps=STEPS, every=2),
    GMP(sparsity=0.8, steps=STEPS, every=1, allocation="global"),
    RigL(sparsity=0.7, steps=STEPS, every=3, exclude=("2.*",), overrides={"4.*": 0.4}),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name} {m.pattern} {m.allocation}")
def test_masked_and_stored_agree_for_every_method(method):
    compare(method, "adamw")
    compare(method, "momentum")


def compare(method, optimizer_name):
    losses, masks = [], []
    for stored in (False, True):
        model = mlp()
        if stored:
            to_sparse_(model, method)
        optimizer = made(optimizer_name, model)
        sparsifier = attach(model, optimizer, method)
        losses.append([learn(model, optimizer, t) for t in range(STEPS)])
        masks.append(sparsifier.masks)
    assert losses[0] == pytest.approx(losses[1], rel=1e-11)
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


def test_a_model_half_masked_half_stored_agrees_too():
    method = RigL(sparsity=0.7, steps=STEPS, every=3)
    losses = []
    for stored in (False, True):
        model = convnet()
        model[0].padding_mode = "circular"  # such a convolution is not stored, only masked
        if stored:
            assert "0.weight" not in to_sparse_(model, method)
        optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        sparsifier = attach(model, optimizer, method)
        losses.append([])
        for t in range(STEPS):
            g = generator(t)
            optimizer.zero_grad()
            loss = F.cross_entropy(
                model(torch.randn(8, 2, 6, 6, generator=g).double()), torch.randint(3, (8,), generator=g)
            )
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        assert sparsifier.kept == sparsifier.plan.kept
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_equal_under_accumulation_and_clipping():
    losses = []
    for stored in (False, True):
        model = mlp()
        if stored:
            to_sparse_(model, AFTER)
        optimizer = optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        sparsifier = attach(model, optimizer, AFTER)
        seen = []
        for t in range(STEPS):
            optimizer.zero_grad(set_to_none=t % 2 == 0)
            for micro in range(3):
                x, y = batch(10 * t + micro)
                loss = F.cross_entropy(model(x), y) / 3
                loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            seen += [loss.item(), norm.item()]
            optimizer.step()
        losses.append(seen)
        assert sparsifier.updates == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_clipping_sees_active_connections_only():
    model = mlp()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    sparsifier = attach(model, optimizer, RIGL)
    x, y = batch(0)
    F.cross_entropy(model(x), y).backward()
    for c in sparsifier.connections.values():
        assert not c.weight.parameter.grad[~c.mask].any()


def run(method, name, stored, stop=None, dtype=torch.float64):
    """Train, from the saved state of `stop` in new objects if one is given. Returns everything that could
    differ.
    """
    step = learn_in_closure if name == "lbfgs" else learn

    def start(resume=None, seed=0):
        model = mlp(seed, dtype)
        if stored:
            to_sparse_(model, method)
        if resume is not None:
            model.load_state_dict(resume[0])
        optimizer = made(name, model)
        if resume is not None:
            optimizer.load_state_dict(resume[1])
        return model, optimizer, attach(model, optimizer, method, resume=resume and resume[2])

    model, optimizer, sparsifier = start()
    for t in range(STEPS):
        if t == stop:
            file = io.BytesIO()
            torch.save([model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()], file)
            file.seek(0)
            model, optimizer, sparsifier = start(torch.load(file, weights_only=True), seed=7)
            assert sparsifier.step_count == stop
        step(model, optimizer, t) if name == "lbfgs" else step(model, optimizer, t, dtype)
    found = {f"model {n}": v for n, v in model.state_dict().items()}
    found |= {f"positions {n}": c.positions for n, c in sparsifier.connections.items()}
    for i, state in optimizer.state_dict()["state"].items():
        found |= {f"optimizer {i} {k}": v for k, v in state.items() if isinstance(v, torch.Tensor)}
    found["counts"] = torch.tensor([sparsifier.step_count, sparsifier.updates, sparsifier.skipped])
    return found


RESUMED = [
    (RIGL, "adamw"),
    (AFTER, "momentum"),
    (SET(sparsity=0.7, steps=STEPS, every=2, grown_std=0.1), "amsgrad"),
    (GMP(sparsity=0.8, steps=STEPS, every=2), "rmsprop"),
    (StaticRandom(sparsity=0.7, init="kaiming"), "adagrad"),
]


@pytest.mark.parametrize("stored", [False, True], ids=["masked", "stored"])
@pytest.mark.parametrize(("method", "name"), RESUMED, ids=lambda v: getattr(v, "name", v))
def test_an_interrupted_run_ends_with_the_same_bits(method, name, stored):
    straight = run(method, name, stored)
    for stop in (1, 5, 6, STEPS - 1):
        resumed = run(method, name, stored, stop)
        assert straight.keys() == resumed.keys()
        different = [n for n, v in straight.items() if not torch.equal(v, resumed[n])]
        assert not different, f"after step {stop}: {different}"


@pytest.mark.parametrize("name", ["lbfgs", "adafactor", "muon", "adam fused"])
def test_an_interrupted_run_of_an_unusual_optimizer(name):
    method = RigL(sparsity=0.7, steps=STEPS, every=4)
    straight, resumed = run(method, name, False), run(method, name, False, 6)
    assert all(torch.equal(v, resumed[n]) for n, v in straight.items())


def test_an_interrupted_run_that_grows_by_momentum():
    method = RigL(sparsity=0.7, steps=STEPS, every=3, grow="momentum")
    straight, resumed = (
        run(method, "adamw", False, dtype=torch.float32),
        run(method, "adamw", False, 5, torch.float32),
    )
    assert all(torch.equal(v, resumed[n]) for n, v in straight.items())


def test_load_state_dict_into_an_attached_sparsifier():
    model, other = mlp(), mlp(5)
    sparsifier, twin = attach(model, None, RIGL), attach(other, None, RIGL)
    c = sparsifier.connections["0.weight"]
    c.replace((c.numel - 1 - c.positions).flip(0))  # elsewhere than a fresh start
    other.load_state_dict(model.state_dict())
    assert not torch.equal(twin.masks["0.weight"], c.mask)
    twin.load_state_dict(sparsifier.state_dict())
    assert all(torch.equal(m, twin.masks[n]) for n, m in sparsifier.masks.items())


def test_a_state_of_another_run_changes_nothing():
    saved = attach(mlp(), None, RIGL).state_dict()
    wrong = [
        (RigL(sparsity=0.6, steps=STEPS, every=3), saved, "sparsity: saved 0.7, now 0.6"),
        (SET(steps=STEPS), saved, "method: saved 'rigl', now 'set'"),
        (
            RIGL,
            {**saved, "positions": {"0.weight": saved["positions"]["0.weight"]}},
            "only one side has 2.weight",
        ),
        (
            RIGL,
            {**saved, "positions": {**saved["positions"], "4.weight": torch.tensor([33])}},
            r"topology of 4.weight does not fit its shape \[3, 11\]",
        ),
    ]
    for method, state, message in wrong:
        model = mlp()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=message):
            attach(model, None, method, resume=state)
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
        sparsifier = attach(model, None, method)
        positions = {n: c.positions for n, c in sparsifier.connections.items()}
        with pytest.raises(ValueError, match=message):
            sparsifier.load_state_dict(state)
        assert all(torch.equal(p, sparsifier.connections[n].positions) for n, p in positions.items())


def test_a_stored_topology_must_be_loaded_with_the_model():
    model = mlp()
    to_sparse_(model, RIGL)
    state = attach(model, None, RIGL).state_dict()
    other = mlp()
    to_sparse_(other, RigL(sparsity=0.7, steps=STEPS, every=3, seed=1))
    with pytest.raises(ValueError, match=r"stored topology of 0.weight .* load the model's state_dict first"):
        attach(other, None, RIGL, resume=state)


def test_two_param_groups_and_two_optimizers():
    for several in (False, True):
        model = mlp()
        first, second = list(model[0].parameters()), [*model[2].parameters(), *model[4].parameters()]
        if several:
            optimizers = [
                optim.AdamW(first, lr=0.01, weight_decay=0.1),
                optim.SGD(second, lr=0.1, momentum=0.9),
            ]
        else:
            optimizers = [optim.AdamW([{"params": first, "lr": 0.1}, {"params": second}], lr=0.01)]
        sparsifier = attach(model, optimizers, AFTER)
        for t in range(STEPS):
            for o in optimizers:
                o.zero_grad()
            x, y = batch(t)
            F.cross_entropy(model(x), y).backward()
            for o in optimizers:
                o.step()
            assert holds(sparsifier)
        assert sparsifier.step_count == STEPS
        assert sparsifier.updates == 3
        assert sparsifier.kept == sparsifier.plan.kept


class Signs(optim.Optimizer):
    """What somebody else's optimizer may look like: state of many shapes, parameters replaced out of place."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {
                        "ema": torch.ones_like(p),
                        "count": 0,
                        "scale": torch.ones(()),
                        "rows": p.detach().sum(0),
                    }
                state["ema"] = 0.9 * state["ema"] + p.grad
                state["count"] += 1
                p.data = p.data - group["lr"] * (state["ema"].sign() + 0.1)


class Wrapped:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()


def test_a_third_party_optimizer_in_two_wrappers():
    model = mlp()
    optimizer = Wrapped(Wrapped(Signs(model.parameters(), lr=0.01)))
    sparsifier = attach(model, optimizer, RIGL)
    for t in range(STEPS):
        learn(model, optimizer, t)
        assert holds(sparsifier)
    assert sparsifier.updates == 3


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"needs a torch.optim.Optimizer or a wrapper .* got object"):
        attach(mlp(), object(), RIGL)
    with pytest.raises(TypeError, match=r"use ow.sparsify_"):
        attach(mlp(), None, Magnitude())


def test_a_parameter_that_nobody_trains_is_reported():
    model = mlp()
    with pytest.warns(SparsifierWarning, match=r"4.weight will be sparse, but no optimizer"):
        attach(model, optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1), RIGL)


def test_without_an_optimizer_object():
    losses = []
    for by_hand in (False, True):
        model = mlp()
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        sparsifier = attach(model, None if by_hand else optimizer, AFTER)
        losses.append([])
        for t in range(STEPS):
            if not by_hand:
                losses[-1].append(learn(model, optimizer, t))
                continue
            model.zero_grad()
            x, y = batch(t)
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            losses[-1].append(loss.item())
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            sparsifier.step()
            assert holds(sparsifier)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize("method", [RIGL, AFTER], ids=["replace", "after"])
def test_closures_take_the_same_steps(method):
    outcomes = []
    for step in (learn, learn_in_closure):
        model = mlp()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        attach(model, optimizer, method)
        outcomes.append([step(model, optimizer, t) for t in range(STEPS)])
    assert outcomes[0] == outcomes[1]


def test_an_update_takes_the_place_of_a_step_or_follows_it():
    for method, moved in ((RIGL, False), (AFTER, True)):
        model = mlp()
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        sparsifier = attach(model, optimizer, method)
        for t in range(2):
            learn(model, optimizer, t)
        bias, grown = model[0].bias.detach().clone(), sparsifier.masks["0.weight"]
        learn(model, optimizer, 2)
        assert sparsifier.updates == 1
        assert torch.equal(bias, model[0].bias) != moved
        assert not torch.equal(grown, sparsifier.masks["0.weight"])
        assert model[0].bias.grad is not None  # gradients that were hidden are there again


def scaled_run(overflow):
    model = mlp(dtype=torch.float32)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = attach(model, optimizer, AFTER)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    t = 0
    for _ in range(STEPS + len(overflow)):
        optimizer.zero_grad()
        x, y = batch(t, torch.float32)
        loss = F.cross_entropy(model(x), y)
        skip = sparsifier.step_count in overflow and _skip_once(overflow, sparsifier.step_count)
        scaler.scale(loss * torch.inf if skip else loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        t += not skip
    return model, sparsifier


def _skip_once(overflow, step):
    overflow[step] -= 1
    return overflow[step] >= 0


def test_an_overflow_in_mixed_precision_skips_one_step_and_nothing_else():
    model, sparsifier = scaled_run({})
    other, again = scaled_run({2: 1})  # in the very step whose gradient growth looks at
    assert (sparsifier.step_count, again.step_count) == (STEPS, STEPS)
    assert again.skipped == 0
    assert all(torch.equal(m, again.masks[n]) for n, m in sparsifier.masks.items())
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model(backend):
    losses = []
    for compiled in (False, True):
        model = mlp()
        wrapped = torch.compile(model, backend=backend) if compiled else model
        optimizer = optim.Adam(wrapped.parameters(), lr=0.01)
        sparsifier = attach(wrapped, optimizer, AFTER)
        losses.append([learn(wrapped, optimizer, t) for t in range(STEPS)])
        assert set(sparsifier.masks) == {"0.weight", "2.weight", "4.weight"}
        assert holds(sparsifier)
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    torch.compiler.reset()


def test_nan_in_the_gradient_of_pruned_connections_does_no_harm():
    losses = []
    for poisoned in (False, True):
        model = mlp()
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        sparsifier = attach(model, optimizer, StaticRandom(sparsity=0.7))
        if poisoned:
            for c in sparsifier.connections.values():
                c.weight.parameter.register_hook(lambda g, c=c: g.masked_fill(~c.mask, torch.nan))
        losses.append([learn(model, optimizer, t) for t in range(STEPS)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("where", [0, 4])
def test_an_update_without_finite_gradients_is_skipped_whole(where):
    model = mlp()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    sparsifier = attach(model, optimizer, RIGL)
    model[where].weight.register_hook(
        lambda g: torch.full_like(g, torch.nan) if sparsifier.step_count == 2 else g
    )
    masks = sparsifier.masks
    learn(model, optimizer, 0)
    learn(model, optimizer, 1)
    with pytest.warns(SparsifierWarning, match=r"topology update at step 3 skipped: .* NaN"):
        learn(model, optimizer, 2)
    assert all(torch.equal(m, sparsifier.masks[n]) for n, m in masks.items())
    assert (sparsifier.skipped, sparsifier.updates) == (1, 0)
    assert "1 skipped" in sparsifier.summary()
    for t in range(3, 6):
        learn(model, optimizer, t)
    assert sparsifier.updates == 1


def test_weights_that_are_not_finite_skip_the_update():
    model = mlp()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    sparsifier = attach(model, optimizer, SET(sparsity=0.7, steps=STEPS, every=1))
    with torch.no_grad():
        model[0].bias.fill_(torch.nan)
    with pytest.warns(SparsifierWarning, match="weights of .* hold NaN or infinity"):
        learn(model, optimizer, 0)
    assert sparsifier.updates == 0
    assert holds(sparsifier)


def test_a_layer_that_was_not_used_does_no_harm():
    for stored in (False, True):
        model = mlp()
        if stored:
            to_sparse_(model, AFTER)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        sparsifier = attach(model, optimizer, AFTER)
        for t in range(4):
            optimizer.zero_grad()
            model[0](batch(t)[0]).sum().backward()
            optimizer.step()
        assert sparsifier.updates == 1
        assert sparsifier.kept == sparsifier.plan.kept


def test_a_frozen_layer_keeps_its_zeros():
    model = mlp()
    model[0].weight.requires_grad_(False)
    sparsifier = attach(
        model, optim.SGD(model.parameters(), lr=0.1), StaticRandom(sparsity=0.7, include=("0.weight",))
    )
    assert int((model[0].weight != 0).sum()) == sparsifier.connections["0.weight"].kept


def test_detach_lets_go():
    for stored in (False, True):
        model = mlp()
        if stored:
            to_sparse_(model, RIGL)
        optimizer = optim.Adam(model.parameters(), lr=0.1)
        sparsifier = attach(model, optimizer, RIGL)
        learn(model, optimizer, 0)
        zeros = sum(int((m.weight == 0).sum()) for m in model if isinstance(m, nn.Linear))
        sparsifier.detach()
        sparsifier.detach()
        keys = set(model.state_dict())
        for t in range(3):
            learn(model, optimizer, t)
        assert sparsifier.step_count == 1
        assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters())
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        if not stored:
            assert keys == set(mlp().state_dict())
            assert sum(int((m.weight == 0).sum()) for m in model if isinstance(m, nn.Linear)) < zeros


def test_masks_that_were_given():
    model = mlp()
    pruned = sparsify_(model, Magnitude(sparsity=0.6))
    with torch.no_grad():
        model[0].weight[pruned.masks["0.weight"].nonzero()[0].tolist()] = 0.0  # kept, and zero
    before = copy.deepcopy(model.state_dict())
    sparsifier = attach(model, None, KeepZeros(), masks=pruned.masks)
    assert all(torch.equal(m, pruned.masks[n]) for n, m in sparsifier.masks.items())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert sparsifier.plan.kept == pruned.plan.kept == sparsifier.kept
    assert "mask given" in str(sparsifier.plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"9.weight": m["0.weight"]}, "masks are given for 9.weight"),
        (lambda m: {"0.weight": m["0.weight"]}, r"no mask is given for 2.weight, 4.weight"),
        (
            lambda m: m | {"0.weight": m["0.weight"].T},
            r"0.weight must be boolean of shape \[16, 9\]; got torch.bool \[9, 16\]",
        ),
        (lambda m: m | {"0.weight": m["0.weight"].int()}, r"got torch.int32"),
    ],
)
def test_masks_that_do_not_fit(change, message):
    model = mlp()
    masks = {f"{i}.weight": torch.ones_like(model[i].weight, dtype=torch.bool) for i in (0, 2, 4)}
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        attach(model, None, RIGL, masks=change(masks))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("cls", [SET, RigL, GMP])
def test_a_scheduled_method_must_know_the_length_of_the_run(cls):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"does not know its length: give steps="):
        attach(model, None, cls(sparsity=0.5))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_the_model_stays_ordinary():
    model = mlp()
    keys = list(model.state_dict())
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, RIGL)
    assert list(model.state_dict()) == keys
    twin = copy.deepcopy(model)
    assert type(twin[0]) is nn.Linear
    twin(batch(0)[0]).sum().backward()
    assert bool((twin[0].weight.grad != 0).all())  # the copy is not guarded, and was not broken


def test_the_summary_says_what_is():
    sparsifier = attach(mlp(), None, RIGL)
    text = sparsifier.summary()
    assert "rigl after step 0: asked sparsity 0.7" in text
    assert "0 updates" in text
    for name, c in sparsifier.connections.items():
        assert f"kept {c.kept:>9} of {c.numel:>9}" in text
        assert name in text
    assert sparsifier.sparsity == 1 - sparsifier.kept / (9 * 16 + 16 * 11 + 33)


class Conv1D(nn.Module):
    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs))

    def forward(self, x):
        return x @ self.weight


class MixedExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.empty(3, 4, 6))

    def forward(self, x):
        return torch.einsum("eoi,bi->beo", self.up, x)


KINDS = {
    "linear": (lambda: nn.Linear(6, 8), (5, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(3, 6, (3, 2)), (2, 3, 6, 5)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=2), (2, 4, 6, 5)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 6, 5)),
    "channels last": (lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (2, 4, 6, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), (2, 4, 5, 5)),
    "rnn": (lambda: nn.RNN(6, 4), (3, 2, 6)),
    "lstm": (lambda: nn.LSTM(6, 4, num_layers=2, bidirectional=True), (3, 2, 6)),
    "gru": (lambda: nn.GRU(6, 4), (3, 2, 6)),
    "attention": (lambda: nn.MultiheadAttention(6, 2, batch_first=True), (2, 5, 6)),
    "embedding": (lambda: nn.Embedding(9, 6), None),
    "conv1d of transformers": (lambda: Conv1D(8, 6), (5, 6)),
    "experts": (MixedExperts, (5, 6)),
}


@pytest.mark.parametrize("method", [AFTER, GMP(sparsity=0.6, steps=STEPS, every=2)], ids=lambda m: m.name)
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_on_every_kind_of_layer(kind, method):
    build, shape = KINDS[kind]
    model = nn.ModuleDict({"it": build()}).double()
    g = generator()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    x = torch.randn(shape, generator=g).double() if shape else torch.arange(9).view(3, 3)
    include = ("it.weight",) if kind == "embedding" else ()
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    sparsifier = attach(model, optimizer, dataclasses.replace(method, include=include, sparsity=0.6))
    target = None
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        out = model["it"](x, x, x)[0] if kind == "attention" else model["it"](x)
        out = out[0] if isinstance(out, tuple) else out
        target = torch.randn(out.shape, generator=g).double() if target is None else target
        loss = (out - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert holds(sparsifier)
    assert sparsifier.kept == sparsifier.plan.kept == round(0.4 * sparsifier.plan.numel)
    assert sparsifier.updates >= 3
    assert losses[-1] < losses[1]
    assert all(tuple(m.shape) == sparsifier.connections[n].weight.shape for n, m in sparsifier.masks.items())


def test_warnings_are_not_usual():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = mlp()
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer, RIGL)
        for t in range(STEPS):
            learn(model, optimizer, t)
