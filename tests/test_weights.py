"""The weights of a model, seen with outputs first, through wrappers, each once."""

import pytest
import torch
from torch import nn

from openwork.plan import plan
from openwork.train.static_random import StaticRandom
from openwork.weights import prunable, unwrapped
from tests.plan.models import Everything, mlp


def test_orientation_is_a_view_with_outputs_first():
    for w in prunable(Everything()):
        view = w.oriented(w.parameter.detach())
        assert tuple(view.shape) == w.shape
        view.view(-1)[0] if view.is_contiguous() else None
        with torch.no_grad():
            view[(0,) * view.dim()] = 123.0
        assert bool((w.parameter == 123.0).any())
    gpt = next(w for w in prunable(Everything()) if w.name == "gpt.weight")
    assert gpt.oriented(gpt.parameter)[7, 2] == gpt.parameter[2, 7]


def test_lazy_layers_have_no_shape_yet():
    with pytest.raises(ValueError, match="run the model once on an example"):
        plan(nn.Sequential(nn.LazyLinear(3)), StaticRandom())


def test_wrappers_are_looked_through():
    model = mlp()
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    assert unwrapped(wrapped) is model
    assert str(plan(wrapped, StaticRandom())) == str(plan(model, StaticRandom()))


def test_tied_linear_layers_are_one_parameter():
    model = mlp()
    model.append(nn.Linear(20, 20))
    model[-1].weight = model[2].weight
    assert [row.name for row in plan(model, StaticRandom())] == ["0.weight", "2.weight", "4.weight"]
