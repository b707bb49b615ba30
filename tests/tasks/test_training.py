"""The training loop: deterministic, exact in its counting, and able to learn."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from openwork.tasks.mlp import mlp
from openwork.tasks.task import Split, Task
from openwork.tasks.training import evaluate, fit


def blobs(n=70):
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(n) % 3
    inputs = torch.eye(3)[targets] * 2 + 0.3 * torch.randn(n, 3, generator=generator)
    parts = [Split(inputs[a:b], targets[a:b]) for a, b in ((0, 50), (50, 60), (60, 70))]
    return Task("blobs", "classification", *parts, classes=("a", "b", "c"))


def trained(**options):
    model = mlp([3, 8, 3], seed=0)
    run = fit(model, blobs(), optimizer=SGD(model.parameters(), lr=0.1), **{"batch_size": 16, **options})
    return model, run


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    (first, run), (again, rerun), (other, _) = (
        trained(steps=9, seed=1),
        trained(steps=9, seed=1),
        trained(steps=9, seed=2),
    )
    assert run.losses == rerun.losses
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.fc1.weight, other.fc1.weight)


def test_an_epoch_sees_every_example_once():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            if self.training:
                seen.append(x)
            return self.fc(x)

    model, task = Spy(), blobs()
    run = fit(model, task, optimizer=SGD(model.parameters(), lr=0.1), epochs=2, batch_size=16)
    assert [len(x) for x in seen] == [16, 16, 16, 2] * 2
    assert (run.steps, run.examples) == (8, 100)
    for half in (seen[:4], seen[4:]):
        assert torch.equal(torch.cat(half).sort(0).values, task.train.inputs.sort(0).values)
    assert not torch.equal(seen[0], seen[4])


def test_training_teaches():
    model, run = trained(epochs=30)
    assert run.losses[-1] < 0.2 * run.losses[0]
    assert run.validation.accuracy == 1.0
    assert run.seconds > 0
    assert model.training


def test_on_step_is_told_every_step():
    told = []
    _, run = trained(steps=5, on_step=lambda step, loss: told.append((step, loss)))
    assert told == list(enumerate(run.losses, start=1))


def test_augmentation_is_applied_to_every_batch():
    sizes = []

    def note(inputs, generator):
        sizes.append(len(inputs))
        return inputs + torch.rand(inputs.shape, generator=generator)

    (_, run), (_, plain) = trained(steps=5, augment=note), trained(steps=5)
    assert sizes == [16, 16, 16, 2, 16]
    assert run.losses != plain.losses


@pytest.mark.parametrize("options", [{}, {"steps": 3, "epochs": 1}])
def test_the_length_is_given_exactly_once(options):
    with pytest.raises(ValueError, match="exactly one of epochs= and steps="):
        trained(**options)


def test_a_loss_that_explodes_stops_the_run():
    model = mlp([3, 8, 3], seed=0)
    with torch.no_grad():
        model.fc1.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="step 1 is nan"):
        fit(model, blobs(), optimizer=SGD(model.parameters(), lr=0.1), steps=3)


@pytest.mark.parametrize("batch_size", [3, 10, 1000])
def test_evaluation_does_not_depend_on_its_batches(batch_size):
    model, task = mlp([3, 8, 3], seed=0), blobs()
    found = evaluate(model, task.validation, batch_size=batch_size)
    logits = model(task.validation.inputs).detach()
    assert found.accuracy == pytest.approx(
        float((logits.argmax(1) == task.validation.targets).float().mean())
    )
    expected = -logits.log_softmax(1)[torch.arange(10), task.validation.targets].mean()
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    assert model.training


def test_language_is_judged_at_every_position():
    logits = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0))
    split = Split(torch.arange(4), torch.randint(0, 7, (4, 5), generator=torch.Generator().manual_seed(1)))

    class Table(nn.Module):
        def forward(self, x):
            return logits[x]

    found = evaluate(Table(), split, batch_size=3)
    assert found.accuracy == pytest.approx(float((logits.argmax(-1) == split.targets).double().mean()))
