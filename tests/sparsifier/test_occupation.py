"""One parameter, one sparsifier."""

import copy

import pytest
import torch
from torch import nn

from openwork.sparsifier import attach
from openwork.train.keep_zeros import KeepZeros
from openwork.train.set import SET

METHOD = SET(sparsity=0.7, steps=10)


def mlp():
    return nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 4))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_a_second_sparsifier_is_refused_until_the_first_is_detached():
    model = mlp()
    first = attach(model, sgd(model), METHOD)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^0\.weight, 2\.weight: a sparsifier is at work there already"):
        attach(model, sgd(model), SET(sparsity=0.5, steps=10, seed=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    first.detach()
    assert attach(model, sgd(model), KeepZeros()).kept == first.kept


def test_two_may_share_a_model_and_a_copy_is_another():
    model = mlp()
    optimizer = sgd(model)
    attach(model, optimizer, SET(sparsity=0.7, steps=10, exclude=("2.*",)))
    attach(copy.deepcopy(model), None, METHOD)
    with pytest.raises(ValueError, match=r"^0\.weight: a sparsifier"):
        attach(model, optimizer, METHOD)
    attach(model, optimizer, SET(sparsity=0.7, steps=10, exclude=("0.*",)))
