"""Layers in another form: what the verb does; what every such method promises is in the conformance suite."""

import dataclasses

import pytest
import torch
from torch import nn

from openwork import RPS, SET, Bitwise, Monarch, Pixelfly, restructure_
from openwork.layouts.structured import StructuredLinear

METHODS = {
    "monarch": Monarch(blocks=3),
    "pixelfly": Pixelfly(block=2, grid=4, factors=1, rank=3),
    "rps": RPS(compression=5),
    "bitwise": Bitwise(bits=3),
}


def net():
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
    return model.double()


def x():
    return torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
class TestVerb:
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
    with torch.no_grad():
        model[4].weight[1, 2] = torch.inf
    with pytest.raises(ValueError, match=r"4\.weight holds NaN or infinity"):
        restructure_(model, Monarch(blocks=2))
    assert type(model[2]) is nn.Linear
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
