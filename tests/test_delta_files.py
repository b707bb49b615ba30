"""A fine-tuned model as a thin file: the bits of the merge, next to nothing on disk, and no other base."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import openwork as ow
from openwork import DARE, TIES, FileError, TaskArithmetic, add_delta_, merge_, save_delta
from openwork.files.container import opened
from openwork.files.delta import KEY
from openwork.testing import network
from tests.merging.test_merging import same, state, tuned


@pytest.mark.parametrize(
    "method",
    [
        DARE(sparsity=0.9),
        DARE(sparsity=0.9, drop="smallest"),
        DARE(sparsity=0.5, pattern="block 3x1", exclude=("7.*",)),
        TIES(),
        TaskArithmetic(scale=1.0),
    ],
)
def test_base_and_file_are_the_merge(method, tmp_path):
    base = network()
    with torch.no_grad():
        base[4].weight.view(-1)[::3] = 0.0
    other = tuned(base, 1)
    save_delta(tmp_path / "d.safetensors", base, other, method)
    merged, again = copy.deepcopy(base), copy.deepcopy(base)
    merge_(merged, [other], method)
    add_delta_(again, tmp_path / "d.safetensors")
    assert same(state(merged), state(again))


def test_masks_that_are_drawn_take_no_room(tmp_path):
    base = nn.Sequential(nn.Linear(300, 200))
    other = tuned(base, 1)
    sizes = {}
    for drop in ("random", "smallest"):
        path = tmp_path / drop
        save_delta(path, base, other, DARE(sparsity=0.99, drop=drop), dtype=torch.bfloat16)
        sizes[drop] = sum(t.nbytes for t in load_file(path).values())
    assert sizes["random"] == 2 * (600 + 200)
    assert sizes["smallest"] == 600 * (2 + 4) + 2 * 200
    assert (tmp_path / "random").stat().st_size < 3500 < 4 * 60_000 / 50


def test_models_of_16_bits_come_back(tmp_path):
    base = network(torch.bfloat16)
    other = tuned(base, 1)
    save_delta(tmp_path / "d", base, other, DARE(sparsity=0.0))
    add_delta_(base, tmp_path / "d")
    assert same(state(base), state(other))


def test_another_base_is_refused(tmp_path):
    base = network()
    save_delta(tmp_path / "d", base, tuned(base, 1), DARE())
    for model, said in (
        (network(seed=1), "another base: 0.weight"),
        (nn.Linear(3, 3), "only one of base and"),
    ):
        before = state(model)
        with pytest.raises(FileError, match=said):
            add_delta_(model, tmp_path / "d")
        assert same(before, state(model))


def damaged(path, change, **header):
    with opened(path) as container:
        told = json.loads(container.metadata[KEY]) | header
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path, {KEY: json.dumps(told)})


@pytest.mark.parametrize(
    ("change", "header", "said"),
    [
        (lambda a: a["values 4.weight"].mul_(2), {}, "4.weight does not come out as it was saved"),
        (lambda a: a.pop("values 0.bias"), {}, "holds nothing for 0.bias"),
        (lambda a: a.update({"values 0.bias": torch.ones(4)}), {}, r"0.bias is \[3\], and its delta \[4\]"),
        (lambda a: a["positions 4.weight"].add_(10**6), {}, "positions of 4.weight do not fit"),
        (lambda a: a.update({"values 4.weight": torch.ones(1)}), {}, "positions of 4.weight do not fit"),
        (lambda a: None, {"format": 2}, "a delta of format 2"),
        (lambda a: None, {"digests": [1]}, "not the file of a delta"),
        (lambda a: None, {"method": {"method": "rigl"}}, "rigl is no method that makes deltas"),
        (lambda a: None, {"method": {"method": "dare", "overrides": None}}, "overrides is a table"),
        (
            lambda a: None,
            {"method": {"method": "dare", "kept": 10**6}},
            "no delta of this model: kept=1000000",
        ),
        (
            lambda a: None,
            {"method": {"method": "dare", "exclude": ["x"]}},
            "no delta of this model: exclude: 'x'",
        ),
    ],
)
def test_damage_is_found_before_anything_changes(change, header, said, tmp_path):
    base = network()
    save_delta(tmp_path / "d", base, tuned(base, 1), DARE(drop="smallest"))
    damaged(tmp_path / "d", change, **header)
    before = state(base)
    with pytest.raises(FileError, match=said):
        add_delta_(base, tmp_path / "d")
    assert same(before, state(base))


def test_a_file_of_another_kind(tmp_path):
    ow.save(network(), tmp_path / "model")
    with pytest.raises(FileError, match="not the file of a delta"):
        add_delta_(network(), tmp_path / "model")
    with pytest.raises(FileError, match="there is no such file"):
        add_delta_(network(), tmp_path / "nothing")


@pytest.mark.parametrize("change", ["bit", "shape", "absent", "header"])
def test_buffers_are_proven_before_anything_changes(change, tmp_path):
    base = network()
    save_delta(tmp_path / "d", base, tuned(base, 1), DARE(sparsity=0.9))
    arrays = load_file(tmp_path / "d")
    with opened(tmp_path / "d") as container:
        header = json.loads(container.metadata[KEY])
    name = next(key for key in arrays if key.startswith("buffer "))
    if change == "bit":
        arrays[name].view(-1).view(torch.uint8)[0] ^= 1
    elif change == "shape":
        arrays[name] = torch.zeros(2, 2)
    elif change == "absent":
        del arrays[name]
    else:
        del header["buffers"]
    save_file(arrays, tmp_path / "d", {KEY: json.dumps(header)})
    before = copy.deepcopy(state(base))
    with pytest.raises(FileError, match=r"buffer|not the file of a delta"):
        add_delta_(base, tmp_path / "d")
    assert same(before, state(base))
