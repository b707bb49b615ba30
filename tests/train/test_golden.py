"""A small experiment for each method on real digits: what it reached when it was checked, and must still reach.

Validation accuracy, and mean training loss of the last 30 of 240 steps, of a perceptron of 64 - 96 - 48 - 10 units at
sparsity 0.9. Rounding may decide which connection is dropped, so another machine may take another path: the tolerances
are those of initial weights that differ in the sixth digit, and some more.
"""

import pytest
import torch

from openwork import CHT, DSTEE, GMP, ITOP, SET, SNFS, DeepR, GraNet, RigL, StaticRandom, attach
from openwork.tasks.digits import digits
from openwork.tasks.mlp import mlp
from openwork.tasks.training import fit

RUN = {"sparsity": 0.9, "steps": 240}
OFTEN = {**RUN, "every": 12}

GOLDEN = {
    "static_random": (StaticRandom(**RUN), 0.933, 0.074),
    "set": (SET(**OFTEN), 0.924, 0.083),
    "rigl": (RigL(**OFTEN), 0.944, 0.034),
    "itop": (ITOP(**OFTEN), 0.948, 0.094),
    "dst_ee": (DSTEE(**OFTEN), 0.952, 0.028),
    "snfs": (SNFS(**OFTEN), 0.930, 0.047),
    "deep_r": (DeepR(**RUN, l1=1e-4, noise=1e-3), 0.941, 0.091),
    "gmp": (GMP(**OFTEN), 0.963, 0.023),
    "granet": (GraNet(**OFTEN), 0.944, 0.029),
    "cht": (CHT(**OFTEN, chain=("*",)), 0.933, 0.073),
}


@pytest.fixture(scope="module")
def task():
    pytest.importorskip("sklearn")
    return digits()


def experiment(method, task=None):
    model = mlp([64, 96, 48, 10], seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = attach(model, optimizer, method)
    run = fit(model, task or digits(), optimizer=optimizer, steps=240, seed=5)
    assert sparsifier.kept == sparsifier.plan.kept
    return run.validation.accuracy, sum(run.losses[-30:]) / 30


@pytest.mark.parametrize("name", GOLDEN)
def test_it_is_as_good_as_it_was(name, task):
    method, accuracy, loss = GOLDEN[name]
    found = experiment(method, task)
    assert found[0] == pytest.approx(accuracy, abs=0.03)
    assert found[1] == pytest.approx(loss, rel=0.25)
