"""Hostile input of every kind is refused with a name, in bounded memory: files, records, data, layers, sparsifiers.

``python benchmarks/fuzz_files.py`` tries as many inputs as you like; here are some hundreds.
"""

import copy
import importlib
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from openwork import (
    SET,
    SNFS,
    FileError,
    RigL,
    SparseLinear,
    Sparsifier,
    attach,
    load,
    load_masks,
    save,
    to_sparse_,
)
from openwork.sparsifier import Training

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "options",
    [
        ["--inputs", "400", "--together"],
        pytest.param(["--inputs", "20000"], marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_no_input_is_believed(options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "fuzz_files.py", "--seed", options[1], *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        assert "'refused'" in line
    assert "is what it says" in done.stdout


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("hostile.sparse_files")


@pytest.mark.parametrize("layout", ["dense", "bitmask"])
@pytest.mark.parametrize("rows", [2**31 - 2, 2**40])
def test_rows_without_columns_take_no_memory(
    files: ModuleType, tmp_path: Path, layout: str, rows: int
) -> None:
    """They need no byte in the file, and a pointer each in memory."""
    save(nn.Linear(4, 1), tmp_path / "m")
    arrays, header = files.parts(tmp_path / "m")
    header["tensors"] = {"w": {"layout": layout, "shape": [rows, 0], "dtype": "float32", "kept": 0}}
    none = torch.zeros(rows, 0)
    arrays = {"w": none} if layout == "dense" else {"w_bitmask": none.byte(), "w_values": torch.zeros(0)}
    files.forge(tmp_path / "m", arrays, header, hashes=True)
    for read in (load, load_masks):
        with pytest.raises(FileError, match="most of them of w"):
            read(tmp_path / "m")
    with pytest.raises(FileError, match=r"w is not in the model|weight is not in the file"):
        load(tmp_path / "m", nn.Linear(2, 2))
    header["tensors"]["w"]["shape"] = [2**61, 0, 2**61]
    files.forge(tmp_path / "m", arrays, header, hashes=True)
    with pytest.raises(FileError, match="w cannot have the shape"):
        load(tmp_path / "m")


def anything(chance: random.Random, like: object) -> object:
    """Something else in place of a part of a state."""
    strange = [None, -1, 10**30, 1.5, "x", [], {}, torch.zeros(2, 3), torch.tensor([-1]), torch.tensor([0, 0]),
               torch.tensor([2**40]), torch.tensor(float("nan")), torch.zeros(0, dtype=torch.int64),
               torch.empty(3, device="meta"), True]  # fmt: skip
    if isinstance(like, torch.Tensor) and like.numel():
        changed = like.clone()
        changed.view(-1)[chance.randrange(like.numel())] = chance.choice([0, 1, 99, 200])
        strange += (
            [changed, like.flip(0), like[:-1], like.double(), torch.cat([like, like])]
            if like.dim()
            else [changed]
        )
    return chance.choice(strange)


@pytest.mark.parametrize("seed", range(3))
def test_a_layer_takes_no_state_that_does_not_fit(seed: int) -> None:
    chance = random.Random(seed)
    g = torch.Generator().manual_seed(seed)
    for _ in range(100):
        layer = SparseLinear(12, 9, kept=30, generator=g)
        sound = copy.deepcopy(SparseLinear(12, 9, kept=25, generator=g).state_dict())
        name = chance.choice(list(sound))
        state = {**sound, name: anything(chance, sound[name])}
        if chance.random() < 0.2:
            del state[name]
        try:
            layer.load_state_dict(state)
        except RuntimeError as error:
            named = name.partition("_")[0] in str(error)
        else:
            named = True
        assert named
        layer.topology.validate("it")
        assert layer(torch.ones(3, 12)).shape == (3, 9)
        assert layer.weight_values.shape == layer.weight_col.shape


@pytest.mark.parametrize(("method", "stored"), [(RigL, False), (SET, True), (SNFS, False)])
def test_a_sparsifier_takes_no_state_that_nobody_saved(method: type[Training], stored: bool) -> None:
    def start() -> tuple[nn.Module, Sparsifier]:
        model = nn.Sequential(nn.Linear(9, 12), nn.Linear(12, 4))
        asked = method(sparsity=0.6, steps=20, every=3, allocation="uniform")
        if stored:
            to_sparse_(model, asked)
        return model, attach(model, None, asked)

    chance, (source, first), (model, sparsifier) = random.Random(7), start(), start()
    model.load_state_dict(source.state_dict())
    sound, refused = first.state_dict(), 0
    for _ in range(60):
        state = copy.deepcopy(sound)
        key = chance.choice(list(state))
        if isinstance(state[key], dict) and state[key] and chance.random() < 0.7:
            part = chance.choice(list(state[key]))
            whole = sound[key][part]
            if isinstance(whole, dict) and whole and chance.random() < 0.8:
                state[key][part] = {what: anything(chance, tensor) for what, tensor in whole.items()}
            else:
                state[key][part] = anything(chance, whole)
        elif chance.random() < 0.2:
            del state[key]
        else:
            state[key] = anything(chance, state[key])
        before = {name: c.positions.clone() for name, c in sparsifier.connections.items()}
        try:
            sparsifier.load_state_dict(state)
        except ValueError:
            refused += 1
            assert all(torch.equal(p, sparsifier.connections[n].positions) for n, p in before.items())
        for c in sparsifier.connections.values():
            assert bool((c.positions.diff() > 0).all())
            assert not c.kept or 0 <= int(c.positions[0]) <= int(c.positions[-1]) < c.numel
    assert refused > 20


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("disorder", ["swapped", "twice"])
def test_a_sparsifier_takes_no_topology_out_of_order(disorder: str, stored: bool) -> None:
    model, method = nn.Sequential(nn.Linear(9, 12)), SET(sparsity=0.6, steps=20, every=3)
    if stored:
        to_sparse_(model, method)
    sparsifier = attach(model, None, method)
    before, state = sparsifier.masks, copy.deepcopy(sparsifier.state_dict())
    positions = state["positions"]["0.weight"]
    positions[3:5] = positions[3:5].flip(0) if disorder == "swapped" else positions[3]
    with pytest.raises(ValueError, match=r"0.weight is not in ascending order, or names a connection twice"):
        sparsifier.load_state_dict(state)
    assert torch.equal(before["0.weight"], sparsifier.masks["0.weight"])


@pytest.mark.parametrize(
    "hollow", [torch.zeros(1, dtype=torch.int64).expand(2**40), torch.empty(9, device="meta").long()]
)
@pytest.mark.parametrize("place", ["positions", "remembered", "state"])
def test_a_sparsifier_takes_no_tensors_without_contents(place: str, hollow: torch.Tensor) -> None:
    model = nn.Sequential(nn.Linear(9, 12))
    sparsifier = attach(model, None, SNFS(sparsity=0.6, steps=20, every=3, allocation="uniform"))
    before, state = sparsifier.masks, copy.deepcopy(sparsifier.state_dict())
    state[place]["0.weight"] = {"momentum": hollow} if place == "remembered" else hollow
    with pytest.raises(ValueError, match=r"0.weight is no|'state' is dict, or holds something else"):
        sparsifier.load_state_dict(state)
    assert torch.equal(before["0.weight"], sparsifier.masks["0.weight"])
