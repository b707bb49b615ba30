"""Small experiments on real digits: what fine-tuning reached when it was checked, and must still reach.

A perceptron learns the digits 0 to 4, then 5 to 9 alone; accuracies are of validation examples, among their own five classes.
"""

import copy

import pytest
import torch
from torch.nn import functional as F

import openwork as ow
from openwork.tasks.digits import digits
from openwork.tasks.mlp import mlp

OLD, NEW = range(5), range(5, 10)
STEPS = 200


def of(split, classes):
    return split.subset((split.targets >= classes.start) & (split.targets < classes.stop))


def learn(model, split, optimizer, seed):
    g = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * (1 - step / STEPS)
        batch = split.subset(torch.randint(len(split), (64,), generator=g))
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model, split, classes):
    part = of(split, classes)
    found = model(part.inputs)[:, classes.start : classes.stop].argmax(1) + classes.start
    return float((found == part.targets).float().mean())


@pytest.fixture(scope="module")
def task():
    pytest.importorskip("sklearn")
    return digits()


@pytest.fixture(scope="module")
def base(task):
    model = mlp([64, 256, 128, 10], seed=0)
    learn(model, of(task.train, OLD), torch.optim.AdamW(model.parameters(), lr=1e-3), 0)
    assert accuracy(model, task.validation, OLD) > 0.98
    return model


def tuned(base, task, method, lr):
    model = copy.deepcopy(base)
    if isinstance(method, (ow.S2FT, ow.SaRA)):
        part = ow.thaw_(model, method)
        optimizer = torch.optim.AdamW(part.parameters(), lr=lr, weight_decay=0.0)
        part.attach(optimizer)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
        if method is not None:
            sparsifier = ow.attach(model, optimizer, method)
    learn(model, of(task.train, NEW), optimizer, 1)
    if isinstance(method, (ow.S2FT, ow.SaRA)):
        part.merge_()
    elif method is not None:
        assert sparsifier.kept == sparsifier.plan.kept
    return model


@pytest.fixture(scope="module")
def full(base, task):
    return tuned(base, task, None, 1e-3)


SPARSE = {"sparsity": 0.9, "steps": STEPS, "every": 5}
ALL = {"down": ("*.weight",)}
REACHED = {
    "movement": (ow.Movement(**SPARSE), 1e-3, 0.97),
    "soft movement": (ow.SoftMovement(**SPARSE), 1e-3, 0.95),
    "pst": (ow.PST(**SPARSE, rank=2, score_rank=2), 1e-3, 0.94),
    "s2ft": (ow.S2FT(names=ALL, shares={"down": 0.14}), 3e-3, 0.91),
    "sara": (ow.SaRA(fraction=0.14, steps=STEPS), 3e-3, 0.92),
}


@pytest.mark.parametrize("name", REACHED)
def test_new_classes_are_learned(name, base, task, full):
    method, lr, wanted = REACHED[name]
    model = tuned(base, task, method, lr)
    assert accuracy(model, task.validation, NEW) >= wanted - 0.04
    if name in ("s2ft", "sara"):  # train a part, and forget less
        assert accuracy(model, task.validation, OLD) > accuracy(full, task.validation, OLD) + 0.03


def test_the_smallest_weights_do_next_to_nothing(base, task):
    model = copy.deepcopy(base)
    part = ow.thaw_(model, ow.SaRA(fraction=0.2, rearm=1.0))
    for weight in part.weights.values():
        weight.values.data.zero_()
    assert accuracy(model, task.validation, OLD) >= accuracy(base, task.validation, OLD) - 0.01


def test_how_thin_a_delta_may_be(base, task, full):
    dense = accuracy(full, task.validation, NEW)
    reached = {}
    for dropped in (0.5, 0.9, 0.99):
        found = []
        for seed in range(5):
            model = copy.deepcopy(base)
            ow.merge_(model, [full], ow.DARE(sparsity=dropped, seed=seed))
            found.append(accuracy(model, task.validation, NEW))
        reached[dropped] = sum(found) / 5
    assert reached[0.5] >= dense - 0.03
    assert reached[0.9] >= 0.8
    assert reached[0.99] < reached[0.9] - 0.2  # where the noise takes over


def test_movement_is_ahead_of_magnitude(base, task):
    gradual = ow.GMP(**SPARSE, begin=0.1, until=0.7)
    found = [
        accuracy(tuned(base, task, m, 1e-3), task.validation, NEW) for m in (ow.Movement(**SPARSE), gradual)
    ]
    assert found[0] > found[1] + 0.02
