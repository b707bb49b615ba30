"""Parts of a frozen model: only they move, their gradients are those of the whole, and a run goes on with the same bits."""

import copy
import io

import pytest
import torch
from torch import nn

import openwork as ow
from openwork import S2FT, Magnitude, RigL, SaRA, adapt_, thaw_
from openwork.testing import batches, check_method, network, perceptron
from openwork.testing.suite import SAID
from openwork.thawing import Scatter, Slice

METHODS = {
    "s2ft": S2FT(shares={"down": 0.3, "up": 0.4}, names={"down": ("4.weight",), "up": ("7.weight",)}),
    "s2ft of a convolution": S2FT(names={"down": ("0.weight",)}, shares={"down": 0.5}),
    "sara": SaRA(fraction=0.2, steps=8, least=2, nuclear=1e-2),
    "sara to the end": SaRA(threshold=0.6, rearm=1.0),
}
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@pytest.mark.parametrize("cls", [S2FT, SaRA])
def test_values_with_a_page(cls):
    check_method(cls, SAID)


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def learn(model, part, optimizer, steps, first=0):
    for x, y in batches(12)[first : first + steps]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def started(method, model=None):
    model = network() if model is None else model
    part = thaw_(model, method)
    optimizer = torch.optim.AdamW(part.parameters(), lr=0.05, weight_decay=0.1)
    part.attach(optimizer)
    return model, part, optimizer


@EACH
def test_the_model_computes_the_same_at_first_and_only_parts_move(method):
    model, before, x = network(), state(network()), batches(1)[0][0]
    y = model.eval()(x)
    part = thaw_(model, method)
    assert torch.equal(model(x), y)
    optimizer = torch.optim.AdamW(part.parameters(), lr=0.05, weight_decay=0.1)
    part.attach(optimizer)
    places = {
        name: w.part.take(torch.arange(w.parameter.numel()).view(w.parameter.shape)).flatten()
        for name, w in part.weights.items()
    }
    learn(model, part, optimizer, 8)
    part.merge_()
    assert list(model.state_dict()) == list(before)
    assert all(p.requires_grad for p in model.parameters())
    moved = 0
    for name, p in model.named_parameters():
        changed = (p != before[name]).flatten().nonzero().flatten()
        allowed = places.get(name, torch.empty(0, dtype=torch.int64))
        assert torch.isin(changed, allowed).all()
        moved += len(changed)
    assert moved > 0.9 * sum(len(p) for p in places.values())


@EACH
def test_optimizer_state_has_the_size_of_the_part(method):
    model, part, optimizer = started(method)
    learn(model, part, optimizer, 2)
    held = sum(t.numel() for s in optimizer.state.values() for t in s.values() if t.dim())
    assert held == 2 * part.trainable
    assert part.fraction == part.trainable / sum(p.numel() for p in network().parameters())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@EACH
@pytest.mark.parametrize("direct", [False, True], ids=["module", "function"])
def test_gradients_are_those_of_the_whole(method, direct):
    model, dense = network(), network()
    part = thaw_(model, method)
    x, y = batches(1)[0]
    for net in (model, dense):
        if direct:  # not through the layer, but with its weight
            hidden = net[:4](x)
            hidden = nn.functional.linear(hidden, net[4].weight, net[4].bias)
            out = nn.functional.linear(net[5:7](hidden), net[7].weight, net[7].bias)
        else:
            out = net(x)
        nn.functional.cross_entropy(out, y).backward()
    for name, weight in part.weights.items():
        expected = weight.part.take(dense.get_parameter(name).grad)
        torch.testing.assert_close(weight.values.grad, expected)


@EACH
def test_delta_and_base_are_the_trained_model_and_can_be_taken_away(method):
    model, part, optimizer = started(method)
    learn(model, part, optimizer, 8)
    base, trained = state(network()), {name: w.settled().clone() for name, w in part.weights.items()}
    for name, (positions, change) in part.delta().items():
        restored = base[name].flatten()[positions] + change
        torch.testing.assert_close(restored, trained[name].flatten(), rtol=1e-12, atol=1e-15)
    part.remove_()
    for name, p in model.named_parameters():
        assert torch.equal(p, base[name])


@EACH
def test_a_run_goes_on_with_the_same_bits(method):
    straight, part, optimizer = started(method)
    learn(straight, part, optimizer, 8)
    part.merge_()
    for stop in (2, 5):
        model, part, optimizer = started(method)
        learn(model, part, optimizer, stop)
        file = io.BytesIO()
        buffers = {n: b for n, b in model.named_buffers() if "running" in n or "tracked" in n}
        torch.save([part.state_dict(), optimizer.state_dict(), buffers], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again, part, _ = started(method)
        part.load_state_dict(saved[0])
        optimizer = part._optimizer
        optimizer.load_state_dict(saved[1])
        for name, buffer in saved[2].items():
            again.get_buffer(name).copy_(buffer)
        learn(again, part, optimizer, 8 - stop, stop)
        part.merge_()
        for name, p in again.named_parameters():
            assert torch.equal(p, straight.get_parameter(name)), (name, stop)


@EACH
def test_zeros_of_a_sparse_model_stay(method):
    model = network()
    masks = ow.sparsify_(model, Magnitude(sparsity=0.6)).masks
    model, part, optimizer = started(method, model)
    learn(model, part, optimizer, 6)
    part.merge_()
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].any()


def test_zeros_may_be_trained_if_one_says_so():
    model = network()
    ow.sparsify_(model, Magnitude(sparsity=0.6))
    zeros = sum(int((m.weight == 0).sum()) for m in model if isinstance(m, (nn.Linear, nn.Conv2d)))
    model, part, optimizer = started(SaRA(fraction=0.3, rearm=1.0, regrow=True, nuclear=0.0), model)
    learn(model, part, optimizer, 3)
    part.merge_()
    left = sum(int((m.weight == 0).sum()) for m in model if isinstance(m, (nn.Linear, nn.Conv2d)))
    assert left < zeros - 100


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_are_kept_and_small_steps_add_up_in_16_bits(method, dtype):
    model = network(dtype)
    part = thaw_(model, method)
    assert {p.dtype for p in part.parameters()} == {torch.float32}
    optimizer = torch.optim.SGD(part.parameters(), lr=1e-5)
    before = [p.detach().clone() for p in part.parameters()]
    for x, y in batches(2, dtype):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert all(not torch.equal(b, p) for b, p in zip(before, part.parameters(), strict=True))
    part.merge_()
    assert all(p.dtype == dtype for p in model.parameters())


def test_what_is_saved_in_between_is_up_to_date(tmp_path):
    model, part, optimizer = started(METHODS["s2ft"])
    learn(model, part, optimizer, 1)
    kept = model.state_dict()["4.parametrizations.weight.original"].clone()
    ow.save(model, tmp_path / "model")
    again = ow.load(tmp_path / "model", into=network())
    part.merge_()
    assert torch.equal(kept, model[4].weight)
    assert torch.equal(again[4].weight, model[4].weight)


def test_layers_that_hold_only_their_kept_connections():
    model, dense = perceptron(), perceptron()
    masks = ow.sparsify_(model, Magnitude(sparsity=0.7)).masks
    ow.sparsify_(dense, Magnitude(sparsity=0.7))
    ow.to_sparse_(model, masks=masks) if "masks" in ow.to_sparse_.__code__.co_varnames else ow.to_sparse_(
        model
    )
    runs = []
    for net in (model, dense):
        part = thaw_(net, SaRA(fraction=0.5, rearm=1.0, nuclear=0.0))
        optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
        learn(net, part, optimizer, 4)
        part.merge_()
        ow.to_dense_(net)
        runs.append(net)
    for p, q in zip(*(net.parameters() for net in runs), strict=True):
        torch.testing.assert_close(p, q)
    stored = perceptron()
    ow.to_sparse_(stored, RigL(sparsity=0.5))
    with pytest.raises(ValueError, match=r"1.weight holds only its kept connections, and slices are dense"):
        thaw_(stored, S2FT(names={"down": ("1.weight",)}))


def test_a_copy_of_a_thawed_model_stands_alone():
    model, part, optimizer = started(METHODS["s2ft"])
    learn(model, part, optimizer, 2)
    twin = copy.deepcopy(model).eval()
    x = batches(1)[0][0]
    y = twin(x).detach()
    learn(model, part, optimizer, 2)
    assert torch.equal(twin(x), y)


def test_refusals():
    with pytest.raises(TypeError, match="RigL does not train parts"):
        thaw_(network(), RigL())
    with pytest.raises(ValueError, match="no weight is called as the down matrix"):
        thaw_(network(), S2FT())
    with pytest.raises(ValueError, match="does not know its length"):
        thaw_(network(), SaRA())
    with pytest.raises(ValueError, match="no weight is that small"):
        thaw_(network(), SaRA(threshold=1e-9, rearm=1.0))
    with pytest.raises(ValueError, match="exclude"):
        thaw_(network(), SaRA(exclude=("nothing",), rearm=1.0))
    for wrong in ({"shares": {"down": 1.5}}, {"shares": {"middle": 0.5}}, {"select": "best"}):
        with pytest.raises(ValueError, match=r"fraction|no role|select is"):
            S2FT(**wrong)
    for wrong in ({"fraction": -0.1}, {"rearm": 2.0}, {"nuclear": -1.0}, {"threshold": 0.0}):
        with pytest.raises(ValueError, match=r"fraction|nuclear"):
            SaRA(**wrong)
    _, part, optimizer = started(METHODS["s2ft"])
    with pytest.raises(ValueError, match="attached already"):
        part.attach(optimizer)
    other = thaw_(network(), METHODS["sara"])
    with pytest.raises(ValueError, match="of another run"):
        other.load_state_dict(part.state_dict())
    moved = thaw_(network(), METHODS["s2ft"])
    saved = part.state_dict()
    saved["parts"]["4.weight"]["index"] = saved["parts"]["4.weight"]["index"] + 1
    with pytest.raises(ValueError, match=r"4.weight is not one of this model's"):
        moved.load_state_dict(saved)
    next(iter(part.parameters())).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="holds NaN or infinity: nothing was merged"):
        part.merge_()


def test_a_weight_in_two_places_is_refused():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"0.weight and 1.weight are one weight"):
        thaw_(model, SaRA(rearm=1.0))
    assert all(p.requires_grad for p in model.parameters())


def test_a_layer_that_is_called_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            return self.fc(input=x)

    model = Named()
    part = thaw_(model, S2FT(names={"down": ("fc.weight",)}, shares={"down": 0.5}))
    model(torch.ones(2, 6)).sum().backward()
    (values,) = part.parameters()
    assert torch.equal(values.grad, torch.full((4, 3), 2.0))
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 5))
    model.zero_grad()
    (model.fc.weight.sum() * 3).backward()  # outside of its layer again
    assert torch.equal(values.grad, torch.full((4, 3), 3.0))


def test_parts_take_and_put():
    t = torch.arange(24.0).view(2, 3, 4)
    s, p = Slice(2, torch.tensor([1, 3]), True), Scatter(torch.tensor([0, 7, 23]))
    assert s.take(t).shape == (2, 3, 2)
    assert p.take(t).tolist() == [0.0, 7.0, 23.0]
    for part in (s, p):
        other = torch.zeros_like(t)
        part.put_(other, part.take(t))
        assert torch.equal(other[other != 0], t[other != 0])
        assert torch.equal(part.take(other), part.take(t))
    adapters = adapt_(network(), ow.LoRA(rank=2))
    adapters.remove_()
