"""A run that goes on from a checkpoint ends with the bits of one that never stopped, whatever the method."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.method import registry
from openwork.sparsifier import Training
from openwork.testing import SHORT, batches, network, perceptron, plant_zeros, step
from tests.test_sparsifier import OPTIMIZERS

TRAINING = {name: cls for name, cls in registry().items() if issubclass(cls, Training)}
STEPS = SHORT["steps"]


def start(cls, stored, seed=0):
    """A new run: model, optimizer and sparsifier, or None where the method cannot work in that storage."""
    fields = {f.name for f in dataclasses.fields(cls)}
    method = cls(**{key: value for key, value in SHORT.items() if key in fields})
    model = (perceptron if stored else network)(seed=seed)
    plant_zeros(model, method)
    try:
        if stored:
            ow.to_sparse_(model, method)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, ow.attach(model, optimizer, method)
    except ValueError:
        return None


def learn(run, data):
    model, optimizer, _ = run
    for batch in data:
        step(model, optimizer, batch)


def held(run):
    model, optimizer, sparsifier = run
    found = {f"model {n}": t for n, t in model.state_dict().items()}
    found |= {f"mask {n}": m for n, m in sparsifier.masks.items()}
    for i, state in optimizer.state_dict()["state"].items():
        found |= {f"optimizer {i} {k}": v for k, v in state.items() if isinstance(v, torch.Tensor)}
    return found


@pytest.mark.parametrize("stored", [False, True], ids=["masked", "stored"])
@pytest.mark.parametrize("name", TRAINING)
def test_a_resumed_run_has_the_bits_of_a_straight_one(name, stored, tmp_path):
    data = batches(STEPS)
    straight = start(TRAINING[name], stored)
    if straight is None:
        pytest.skip("the method says that it does not work in this storage")
    learn(straight, data)
    for stop in (1, STEPS // 2, STEPS - 1):
        run = start(TRAINING[name], stored)
        learn(run, data[:stop])
        model, optimizer, sparsifier = run
        path = tmp_path / "run"
        ow.save_checkpoint(
            path, model=model, optimizer=optimizer, sparsifier=sparsifier, extra={"step": stop}
        )
        resumed = start(TRAINING[name], stored, seed=1)
        model, optimizer, sparsifier = resumed
        extra = ow.load_checkpoint(path, model=model, optimizer=optimizer, sparsifier=sparsifier)
        assert extra == {"step": stop}
        assert sparsifier.step_count == stop
        learn(resumed, data[stop:])
        expected, found = held(straight), held(resumed)
        assert expected.keys() == found.keys()
        different = [key for key, tensor in expected.items() if not torch.equal(tensor, found[key])]
        assert not different, f"after step {stop}: {different}"


@pytest.mark.parametrize("stored", [False, True], ids=["masked", "stored"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_with_the_same_bits(name, stored, tmp_path):
    """In float64, where torch converts what NAdam keeps in float32 when it loads it."""
    if name == "muon" and stored:
        pytest.skip("Muon trains matrices, and a stored layer has none")

    def begun(seed):
        model = perceptron(seed=seed)
        method = ow.RigL(sparsity=0.6, steps=STEPS, every=2, until=1.0)
        if stored:
            ow.to_sparse_(model, method)
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        return model, optimizer, ow.attach(model, optimizer, method)

    def learn_in_closures(run, data):
        for x, y in data:

            def closure(x=x, y=y):
                run[1].zero_grad()
                loss = nn.functional.cross_entropy(run[0](x), y)
                loss.backward()
                return loss

            run[1].step(closure)

    straight, data = begun(0), batches(STEPS)
    learn_in_closures(straight, data)
    for stop in (1, 4):
        run = begun(0)
        learn_in_closures(run, data[:stop])
        ow.save_checkpoint(tmp_path / "run", model=run[0], optimizer=run[1], sparsifier=run[2])
        run = begun(1)
        ow.load_checkpoint(tmp_path / "run", model=run[0], optimizer=run[1], sparsifier=run[2])
        learn_in_closures(run, data[stop:])
        expected, found = held(straight), held(run)
        assert expected.keys() == found.keys()
        assert [key for key, tensor in expected.items() if not torch.equal(tensor, found[key])] == []


def small(**changes):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.Adam(model.parameters())
    method = ow.SET(**{"sparsity": 0.5, "steps": 9, "every": 3, **changes})
    return {"model": model, "optimizer": optimizer, "sparsifier": ow.attach(model, optimizer, method)}


class Runs:
    """What a pickle would do if anybody listened."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def test_what_is_no_checkpoint_of_this_run_is_refused(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(ow.FileError, match="no such file"):
        ow.load_checkpoint(path, **small())
    ow.save_checkpoint(path, **small())
    whole = path.read_bytes()
    with pytest.raises(ow.FileError, match=r"another run: .*sparsity: saved 0.5, now 0.7"):
        ow.load_checkpoint(path, **small(sparsity=0.7))
    with pytest.raises(ow.FileError, match="only one of the run and the checkpoint has a sparsifier"):
        ow.load_checkpoint(path, **{**small(), "sparsifier": None})
    other = small()
    with pytest.raises(ow.FileError, match="the run has 2 optimizers"):
        ow.load_checkpoint(path, **{**other, "optimizer": [other["optimizer"]] * 2})
    with pytest.raises(ow.FileError, match=r"another run: [\s\S]*Missing key"):
        ow.load_checkpoint(
            path, model=nn.Linear(2, 2), optimizer=other["optimizer"], sparsifier=other["sparsifier"]
        )
    for size in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ow.FileError, match="not a whole checkpoint"):
            ow.load_checkpoint(path, **small())
    torch.save({"format": "openwork checkpoint"}, path)
    with pytest.raises(ow.FileError, match="not a checkpoint of openwork"):
        ow.load_checkpoint(path, **small())
    ow.save(nn.Linear(2, 2), path)
    with pytest.raises(ow.FileError, match="not a whole checkpoint"):
        ow.load_checkpoint(path, **small())
    state = torch.load(_bytes(whole, path), weights_only=True)
    torch.save({**state, "version": 2}, path)
    with pytest.raises(ow.FileError, match="version 2; this openwork reads 1"):
        ow.load_checkpoint(path, **small())


def _bytes(content, path):
    path.write_bytes(content)
    return path


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    trace = tmp_path / "was-here"
    torch.save({"format": "openwork checkpoint", "extra": Runs(trace)}, tmp_path / "run")
    with pytest.raises(ow.FileError, match="not a whole checkpoint"):
        ow.load_checkpoint(tmp_path / "run", **small())
    assert not trace.exists()


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    path = tmp_path / "run"
    ow.save_checkpoint(path, **small(), extra={"epoch": 1})
    before = path.read_bytes()
    with pytest.raises(ow.FileError, match="more than tensors and plain values"):
        ow.save_checkpoint(path, **small(), extra={"epoch": Runs(tmp_path / "was-here")})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    with pytest.raises(ow.FileError, match="there is no folder"):
        ow.save_checkpoint(tmp_path / "nowhere" / "run", **small())


def test_several_optimizers_and_none_of_openwork(tmp_path):
    model = nn.Linear(3, 2)
    both = [torch.optim.SGD([p], lr=0.1, momentum=0.5) for p in model.parameters()]
    model(torch.ones(1, 3)).sum().backward()
    for optimizer in both:
        optimizer.step()
    ow.save_checkpoint(tmp_path / "run", model=model, optimizer=both)
    other = nn.Linear(3, 2)
    theirs = [torch.optim.SGD([p], lr=0.1, momentum=0.5) for p in other.parameters()]
    assert ow.load_checkpoint(tmp_path / "run", model=other, optimizer=theirs) == {}
    assert torch.equal(model.weight, other.weight)
    momenta = [[*o.state.values()][0]["momentum_buffer"] for o in (*both, *theirs)]  # noqa: RUF015
    assert torch.equal(momenta[0], momenta[2])
    assert torch.equal(momenta[1], momenta[3])
