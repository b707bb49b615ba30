"""Files of layers of codes, loaded into a model that has ordinary linear layers."""

import copy
import hashlib
import json

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openwork.files import FileError, load, save
from openwork.files.coded import coded_layers
from openwork.files.header import array_digest
from openwork.layouts.group_int4 import GroupInt4Linear
from tests.layouts.test_group_int4 import layer


class Tower(nn.Module):
    """Codes in two places, one of them twice, beside ordinary layers."""

    def __init__(self, coded: bool) -> None:
        super().__init__()
        self.first = layer(30, 70) if coded else nn.Linear(70, 30)
        self.again = self.first
        self.inner = nn.ModuleDict({"deep": layer(12, 30, 0.3, 1) if coded else nn.Linear(30, 12)})
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner["deep"](self.first(x).relu()) + self.again(x)[..., :12])


def test_ordinary_layers_become_layers_of_codes(tmp_path):
    torch.manual_seed(0)
    coded, plain, x = Tower(coded=True), Tower(coded=False).eval(), torch.randn(5, 70)
    save(coded, tmp_path / "m.safetensors")
    last = plain.last
    assert load(tmp_path / "m.safetensors", into=plain) is plain
    assert isinstance(plain.first, GroupInt4Linear)
    assert plain.again is plain.first
    assert isinstance(plain.inner["deep"], GroupInt4Linear)
    assert plain.last is last
    assert not plain.first.training
    assert torch.equal(plain(x), coded(x))
    assert plain.state_dict().keys() == coded.state_dict().keys()


def test_dense_asks_for_the_layers_that_are_there(tmp_path):
    save(Tower(coded=True), tmp_path / "m.safetensors")
    plain = Tower(coded=False)
    with pytest.raises(FileError, match=r"first\.weight is not in the file"):
        load(tmp_path / "m.safetensors", into=plain, dense=True)
    assert type(plain.first) is nn.Linear


@pytest.mark.parametrize("fault", ["outputs", "inputs", "bias", "name"])
def test_what_does_not_fit_changes_nothing(tmp_path, fault):
    save(Tower(coded=True), tmp_path / "m.safetensors")
    plain = Tower(coded=False)
    if fault == "outputs":
        plain.inner["deep"] = nn.Linear(30, 13)
    elif fault == "inputs":
        plain.inner["deep"] = nn.Linear(15, 12)
    elif fault == "bias":
        plain.inner["deep"] = nn.Linear(30, 12, bias=False)
    else:
        plain.extra = nn.Linear(2, 2)
    modules, state = dict(plain.named_modules()), copy.deepcopy(plain.state_dict())
    with pytest.raises(FileError):
        load(tmp_path / "m.safetensors", into=plain)
    assert dict(plain.named_modules()) == modules
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in state.items())


def test_names_that_only_look_like_codes_are_left_alone(tmp_path):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.register_buffer("codes", torch.arange(3))

    odd = Odd()
    save(odd, tmp_path / "m.safetensors")
    other = Odd()
    load(tmp_path / "m.safetensors", into=other)
    assert torch.equal(other.one.weight, odd.one.weight)


def test_which_layers_of_a_file_are_coded(tmp_path):
    from openwork.files.container import opened
    from openwork.files.reading import read_layout

    save(Tower(coded=True), tmp_path / "m.safetensors")
    with opened(tmp_path / "m.safetensors") as container:
        assert coded_layers(read_layout(container)) == ["again", "first", "inner.deep"]


@pytest.mark.parametrize("entry", [{"layout": "csr", "kept": 0}, {"kept": 0}])
def test_codes_with_a_topology_are_refused_before_there_is_room_for_them(tmp_path, entry):
    path = tmp_path / "m.safetensors"
    save(Tower(coded=True), path)
    with safe_open(path, "pt") as file:
        header = msgspec.json.decode(file.metadata()["openwork"])
    arrays = load_file(path)
    del arrays["inner.deep.codes"]
    shape = [2**31 - 2, 0]  # nothing at all, that a topology would need eight gigabytes for
    header["tensors"]["inner.deep.codes"] |= {"shape": shape} | entry
    if "layout" in entry:
        arrays["inner.deep.codes_values"] = torch.zeros(0, dtype=torch.uint8)
        arrays["inner.deep.codes_crow"] = torch.zeros(6, dtype=torch.int32)
        arrays["inner.deep.codes_col"] = torch.zeros(0, dtype=torch.uint16)
        header["tensors"]["inner.deep.codes"]["shape"] = [5, 60_000]
    else:
        arrays["inner.deep.codes"] = torch.zeros(shape, dtype=torch.uint8)
    header["sha256"] = {key: array_digest(array) for key, array in arrays.items()}
    text = json.dumps(header)
    digest = hashlib.sha256(text.encode()).hexdigest()
    save_file(arrays, path, {"format": "pt", "openwork": text, "openwork_sha256": digest})
    plain = Tower(coded=False)
    with pytest.raises(FileError, match=r"inner\.deep\.codes has a topology"):
        load(path, into=plain)
    assert type(plain.first) is nn.Linear
