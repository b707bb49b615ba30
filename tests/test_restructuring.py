"""Layers in another form: what every such method promises, and what the verb does."""

import copy
import dataclasses
import json

import pytest
import torch
from torch import nn

from openwork import RPS, SET, Bitwise, Monarch, Pixelfly, restructure_, to_dense_
from openwork.layouts.structured import StructuredLinear
from openwork.method import registry
from openwork.restructuring import Restructuring

METHODS = {
    "monarch": Monarch(blocks=3),
    "pixelfly": Pixelfly(block=2, grid=4, factors=1, rank=3),
    "rps": RPS(compression=5),
    "bitwise": Bitwise(bits=3),
}


def net(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 2, 1),
        nn.Flatten(),
        nn.Linear(10, 14),
        nn.Tanh(),
        nn.Linear(14, 9, bias=False),
        nn.Linear(9, 3),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / p.shape[-1] ** 0.5)
    return model.to(dtype)


def x(dtype=torch.float64):
    return torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def test_all_of_them_are_tested_here():
    assert METHODS.keys() <= {name for name, cls in registry().items() if issubclass(cls, Restructuring)}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
class TestPromises:
    def test_a_value_whose_record_is_plain(self, method):
        assert method == type(method)(**{f.name: getattr(method, f.name) for f in dataclasses.fields(method)})
        assert json.loads(json.dumps(method.record())) == method.record()
        assert type(method).__doc__.count("Args:") == 1

    def test_layers_are_replaced_and_the_rest_is_untouched(self, method):
        model = net()
        before = state(model)
        done = restructure_(model, method)
        for row in done.rows:
            layer = model.get_submodule(row.name.removesuffix(".weight"))
            assert isinstance(layer, StructuredLinear) == (row.why == method.name)
            assert (layer.out_features, layer.in_features) == row.shape
        assert torch.equal(model[0].weight, before["0.weight"])
        assert torch.equal(model[2].bias, before["2.bias"])
        assert model[4].bias is None

    def test_it_computes_with_its_dense_weight(self, method):
        model = net()
        restructure_(model, method)
        y = model(x())
        dense = copy.deepcopy(model)
        to_dense_(dense)
        assert all(type(m) is not StructuredLinear for m in dense.modules())
        assert [type(m) for m in dense] == [type(m) for m in net()]
        assert torch.allclose(dense(x()), y)
        for layer in model:
            if isinstance(layer, StructuredLinear):
                h = torch.randn(2, 3, layer.in_features, dtype=torch.float64)
                assert torch.allclose(layer.product(h), h @ layer.dense().T)

    def test_it_learns(self, method):
        model = net()
        restructure_(model, method)
        target = torch.randint(3, (6,), generator=torch.Generator().manual_seed(2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        losses = []
        for _ in range(30):
            loss = nn.functional.cross_entropy(model(x()), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]

    def test_the_seed_decides_and_the_global_state_is_left_alone(self, method):
        models = [net(), net()]
        for model, draws in zip(models, (1, 7), strict=True):
            with torch.random.fork_rng():
                torch.rand(draws)
                before = torch.get_rng_state()
                restructure_(model, method)
                assert torch.equal(before, torch.get_rng_state())
        one, other = map(state, models)
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_dtype_and_mode_are_kept_and_states_load(self, method):
        for dtype in (torch.float32, torch.float64):
            model, other = net(dtype).eval(), net(dtype)
            restructure_(model, method)
            assert all(p.dtype == dtype for p in model.parameters())
            assert not any(m.training for m in model.modules())
            restructure_(other, dataclasses.replace(method, seed=0))
            other.load_state_dict(model.state_dict())
            assert torch.equal(model(x(dtype)), other.eval()(x(dtype)))

    def test_what_is_excluded_stays(self, method):
        model = net()
        before = model[2]
        restructure_(model, dataclasses.replace(method, exclude=("2.*",)))
        assert model[2] is before


def test_the_table():
    done = restructure_(net(), Monarch(blocks=4))
    assert [row.why for row in done.rows] == ["monarch", "monarch", "stays: fewer than 4 units on one side"]
    assert done.before == 10 * 14 + 14 * 9 + 27
    assert done.rows[2].after == done.rows[2].before
    assert str(done).endswith(f"{done.before} -> {done.after} numbers")


def test_shared_weights_stay():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    done = restructure_(model, Monarch(blocks=2))
    assert [row.name for row in done.rows] == ["2.weight"]
    assert type(model[0]) is nn.Linear


def test_what_cannot_be():
    model = net()
    before = state(model)
    with pytest.raises(ValueError, match=r"replaces nothing: 2\.weight \(stays"):
        restructure_(model, Monarch(blocks=50))
    with pytest.raises(ValueError, match="matches no parameter"):
        restructure_(model, Monarch(exclude=("nothing",)))
    with pytest.raises(TypeError, match="SET leaves layers what they are"):
        restructure_(model, SET())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    for wrong in (
        lambda: Monarch(blocks=0),
        lambda: Monarch(start="random"),
        lambda: Pixelfly(grid=12),
        lambda: Pixelfly(grid=8, factors=4),
        lambda: RPS(compression=0.5),
        lambda: RPS(sharing="all"),
        lambda: Bitwise(bits=1),
        lambda: Bitwise(bits=3, trained=4),
    ):
        with pytest.raises(ValueError, match=r"got|choose|has 0 to 3 factors"):
            wrong()
