"""Bytes, counted by hand for comparison."""

import torch
from torch import nn
from torch.optim import SGD, Adam

import openwork as ow
from openwork.compare.measure import forward_latencies, parameter_bytes, training_state

FLOAT, INT = 4, 4


def step(model, optimizer, inputs=7):
    model(torch.rand(5, inputs)).square().sum().backward()
    optimizer.step()


def test_a_dense_model_holds_four_times_its_weights():
    model = nn.Linear(7, 3)
    optimizer = Adam(model.parameters())
    weights = (7 * 3 + 3) * FLOAT
    assert training_state(model, optimizer).total == weights  # before the first step
    step(model, optimizer)
    state = training_state(model, optimizer)
    assert (state.values, state.gradients, state.indices) == (weights, weights, 0)
    assert (
        state.optimizer == 2 * weights + 2 * FLOAT
    )  # two moments, and a counter for each of the two parameters
    assert state.total == 4 * weights + 2 * FLOAT
    assert parameter_bytes(model) == weights


def test_a_stored_layer_holds_kept_weights_and_indices():
    layer = ow.SparseLinear(7, 3, kept=8, generator=torch.Generator().manual_seed(0))
    optimizer = SGD(layer.parameters(), lr=0.1, momentum=0.9)
    step(layer, optimizer)
    state = training_state(layer, optimizer)
    assert (state.values, state.gradients, state.optimizer) == ((8 + 3) * FLOAT,) * 3
    index = (4 + 8) * INT
    assert state.indices > 2 * index  # the layer's own, and that of the transposed matrix at least
    assert parameter_bytes(layer) == (8 + 3) * FLOAT + index


def test_a_masked_layer_holds_its_mask_too():
    model = nn.Sequential(nn.Linear(7, 3))
    optimizer = SGD(model.parameters(), lr=0.1)
    sparsifier = ow.attach(model, optimizer, ow.StaticRandom(sparsity=0.5, steps=5))
    step(model, optimizer)
    assert training_state(model, optimizer, sparsifier).indices >= 7 * 3
    assert training_state(model, optimizer).indices == 0


def test_shared_weights_are_counted_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert parameter_bytes(model) == 16 * FLOAT


def test_the_larger_model_takes_longer_and_modes_are_restored():
    models = {"small": nn.Linear(512, 8), "large": nn.Linear(512, 4096)}
    models["small"].eval()
    found = forward_latencies(models, torch.rand(64, 512), seconds=0.05)
    assert 0 < found["small"].low <= found["small"].median <= found["small"].high
    assert found["small"].median < found["large"].median
    assert not models["small"].training
    assert models["large"].training
