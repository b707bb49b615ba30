"""What is predicted is what tensors really take; benchmarks/memory.py compares the peak of whole processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.kernels.scratch import HUGE_PAGE
from openwork.memory import index_bytes, moments, training_memory
from openwork.tasks.mlp import mlp


def distinct_bytes(tensors):
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


LAYERS = {
    "nothing kept": (lambda: ow.SparseLinear(5, 7, kept=0), (3, 5)),
    "one block": (lambda: ow.SparseLinear(200, 300, kept=6000), (3, 200)),
    "wide": (lambda: ow.SparseLinear(3000, 50, kept=500), (3, 3000)),
    "blocks": (lambda: ow.SparseLinear(900, 64, kept=20000), (3, 900)),
    "convolution": (lambda: ow.SparseConv2d(12, 20, 3, padding=1, sparsity=0.8), (2, 12, 9, 8)),
    "strided": (lambda: ow.SparseConv2d(40, 30, (3, 2), (2, 1), sparsity=0.5), (2, 40, 9, 8)),
}


@pytest.mark.parametrize("reads", ["data", "what is trained"])
@pytest.mark.parametrize("kind", LAYERS)
def test_indices_take_what_is_said(kind, reads):
    make, shape = LAYERS[kind]
    layer, backward = make(), reads == "what is trained"
    layer(torch.ones(shape, requires_grad=backward)).sum().backward()
    p = layer.prepared
    held = [layer.weight_crow, layer.weight_col, p.crow, p.col, *p.walk, *(p._transposed or [])]
    (row,) = ow.plan(nn.Sequential(layer), ow.StaticRandom())
    assert distinct_bytes(held) == index_bytes(row, row.kept, backward)


def test_indices_of_an_embedding():
    layer = ow.SparseEmbedding(50, 8, sparsity=0.7)
    held = [layer.weight_crow, layer.weight_col, *layer.prepared]
    (row,) = ow.plan(nn.Sequential(layer), ow.StaticRandom())
    assert distinct_bytes(held) == index_bytes(row, row.kept, True)


def test_what_reads_data_needs_no_transposed_indices():
    method = ow.StaticRandom(sparsity=0.8, allocation="uniform")
    example = torch.zeros(1, 30)
    model = mlp([30, 40, 20])
    predicted = training_memory(model, method, example, batch=16).forms["stored"].indices
    ow.to_sparse_(model, method)
    model(torch.ones(2, 30)).sum().backward()
    layers = [m for m in model if isinstance(m, ow.SparseLinear)]
    held = []
    for layer in layers:
        p = layer.prepared
        held += [layer.weight_crow, layer.weight_col, p.crow, p.col, *p.walk, *(p._transposed or [])]
    assert predicted == distinct_bytes(held)
    assert training_memory(model, method, example, batch=16).forms["stored"].indices == predicted


@pytest.mark.parametrize(
    "method", [ow.DNW(sparsity=0.8), ow.SNFS(sparsity=0.8, steps=9), ow.SET(sparsity=0.8, steps=9)]
)
def test_what_masked_methods_keep_of_pruned_weights(method):
    model = mlp([30, 40, 20])
    predicted = training_memory(model, method, torch.zeros(1, 30), batch=16).forms["masked"]
    sparsifier = ow.attach(model, torch.optim.SGD(model.parameters(), 0.1), method)
    held = []
    for c in sparsifier.connections.values():
        state = {**vars(c)}
        held += [
            t for t in state.values() if isinstance(t, torch.Tensor) and t.dim() and t is not c.dense_gradient
        ]
    assert predicted.indices == distinct_bytes(held)


@pytest.mark.parametrize("stored", [False, True])
def test_parameters_gradients_and_optimizer_state(stored):
    model = mlp([30, 40, 20])
    method = ow.SET(sparsity=0.8, steps=10)
    predicted = training_memory(model, method, torch.zeros(1, 30), batch=16).forms[
        "stored" if stored else "masked"
    ]
    if stored:
        ow.to_sparse_(model, method)
    again = training_memory(model, method, torch.zeros(1, 30), batch=16).forms[
        "stored" if stored else "masked"
    ]
    assert again == predicted
    opt = torch.optim.Adam(model.parameters())
    ow.attach(model, opt, method)
    model(torch.ones(2, 30)).sum().backward()
    opt.step()
    parameters = list(model.parameters())
    assert predicted.parameters == sum(p.nbytes for p in parameters)
    assert predicted.gradients == sum(p.grad.nbytes for p in parameters)
    states = [s for state in opt.state.values() for s in state.values() if s.dim()]
    assert predicted.optimizer == sum(s.nbytes for s in states)


def test_activations_are_what_forward_saves():
    model = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.BatchNorm1d(30), nn.Linear(30, 4), nn.Tanh())
    running = model[2].running_mean.clone()
    memory = training_memory(model, ow.StaticRandom(sparsity=0.5), torch.zeros(1, 10), batch=100)
    saved = (
        30 + 30 + 4
    )  # what the second linear layer and the norm read, which others made, and what tanh made; data is not counted
    assert memory.forms["dense"].activations == 100 * 4 * saved
    assert torch.equal(model[2].running_mean, running)
    assert all(p.grad is None for p in model.parameters())


def test_nothing_needs_to_exist():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**5, 10**6), nn.ReLU(), nn.Linear(10**6, 10))
    method = ow.SET(sparsity=0.9999, allocation="uniform", steps=10)
    memory = training_memory(model, method, torch.zeros(1, 10**5, device="meta"), batch=128)
    assert memory.forms["dense"].parameters == 4 * (10**11 + 10**6 + 10**7 + 10)
    assert memory.forms["stored"].peak < memory.forms["dense"].peak / 200
    assert "of dense" in str(memory)


def test_moments_are_counted_by_taking_a_step():
    counts = {
        name: moments(name) for name in ("sgd", "momentum", "adam", "adamw", "rmsprop", "adagrad", "adadelta")
    }
    assert counts == {
        "sgd": 0, "momentum": 1, "adam": 2, "adamw": 2, "rmsprop": 1, "adagrad": 1, "adadelta": 2,
    }  # fmt: skip
    assert moments(lambda p: torch.optim.Adam(p, amsgrad=True)) == 3
    with pytest.raises(ValueError, match="no optimizer called 'best'"):
        moments("best")


def compared(*arguments):
    """What benchmarks/memory.py finds: prediction and measured peak of fresh processes."""
    script = Path(__file__).parents[2] / "benchmarks" / "memory.py"
    done = subprocess.run(
        [sys.executable, str(script), *arguments, "--json"], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)["results"]


LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure a peak")


@LINUX
def test_a_process_takes_what_was_predicted():
    (one,) = compared("--width", "1024", "--method", "set", "--optimizer", "sgd", "--forms", "stored")
    assert one["measured"] == pytest.approx(one["predicted"], rel=0.1)


@LINUX
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_processes_take_what_was_predicted():
    for one in compared("--grid"):
        assert one["measured"] == pytest.approx(one["predicted"], rel=0.1, abs=HUGE_PAGE), one
