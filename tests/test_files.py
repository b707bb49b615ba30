"""Files: what is saved comes back bit by bit, and a file that is wrong anywhere is refused with a name."""

import json
import random
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from openwork.files import FileError, export_dense, inspect, load, load_masks, save
from openwork.files.header import array_digest
from openwork.layouts.csr import CSR
from openwork.layouts.linear import SparseLinear
from openwork.layouts.stored import nonzero

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))


def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Random bits: normal numbers, subnormal ones, infinities, and NaN with all sorts of payloads."""
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(256, (size,), generator=generator(seed), dtype=torch.uint8).view(dtype).view(shape)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Holder(nn.Module):
    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))


class Mixed(nn.Module):
    """A bit of everything: sparse and dense layers, a convolution, buffers, a scalar, tied weights."""

    def __init__(self, sparse: bool = True, seed: int = 0) -> None:
        super().__init__()
        source = generator(seed)
        self.embedding = nn.Embedding(12, 30)
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm1d(30)
        self.body = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 30, bias=False))
        self.head = nn.Linear(30, 12)
        self.head.weight = self.embedding.weight
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=source))
            self.conv.weight.mul_(torch.rand(self.conv.weight.shape, generator=source) < 0.3)
        if sparse:
            self.body[0] = SparseLinear(30, 40, sparsity=0.8, generator=source)
            self.body[2] = SparseLinear(40, 30, False, kept=20, generator=source)
            self.body[2].weight_values.data[3] = 0  # a grown connection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x)))  # type: ignore[no-any-return]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.one_of(
        st.lists(st.integers(0, 6), max_size=4), st.tuples(st.integers(1, 4), st.integers(20, 90))
    ).map(tuple),
    dtype=st.sampled_from(FLOATS),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.95, 1.0]),
    given_mask=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_tensor_comes_back(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype, density: float, given_mask: bool, seed: int
) -> None:
    mask = torch.rand(shape, generator=generator(seed)) < density
    weight = torch.where(mask, noise(shape, dtype, seed), 0)
    weight[mask & (torch.rand(shape, generator=generator(seed + 1)) < 0.1)] = 0  # kept zeros
    given_mask = given_mask and len(shape) > 1
    model, path = Holder(w=weight), tmp_path / "m"
    save(model, path, masks={"w": mask} if given_mask else None)
    expected = torch.where(mask if given_mask else nonzero(weight), weight, 0)
    state = load(path)
    (row,) = inspect(path).rows
    assert list(state) == ["w"]
    assert same_bits(state["w"], weight if row.layout == "dense" and not given_mask else expected)
    if given_mask:
        assert torch.equal(load_masks(path)["w"], mask)
    elif row.layout != "dense":
        assert torch.equal(load_masks(path)["w"], nonzero(weight))
    else:
        assert load_masks(path) == {}
    target = load(path, Holder(w=torch.ones(shape, dtype=dtype)))
    assert same_bits(target.w, state["w"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 80), density=st.floats(0, 1), bias=st.booleans(),
    dtype=st.sampled_from(FLOATS), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_any_sparse_layer_comes_back(
    tmp_path: Path, rows: int, columns: int, density: float, bias: bool, dtype: torch.dtype, seed: int
) -> None:
    topology = CSR.random((rows, columns), round(density * rows * columns), generator(seed))
    values = noise((topology.kept,), dtype, seed)
    values[torch.rand(topology.kept, generator=generator(seed)) < 0.1] = 0
    layer = SparseLinear.from_values(topology, values, noise((rows,), dtype, seed) if bias else None)
    path = tmp_path / "m"
    save(nn.Sequential(layer), path)
    for target in (
        nn.Sequential(nn.Linear(columns, rows, bias, dtype=dtype)),
        nn.Sequential(SparseLinear(columns, rows, bias, kept=0, dtype=dtype)),
    ):
        parameters = list(target.parameters())
        assert load(path, target) is target
        assert type(target[0]) is SparseLinear
        assert target[0].topology == topology
        assert same_bits(target[0].weight_values, values)
        assert not bias or same_bits(target[0].bias, layer.bias)
        assert type(target[0]) is not type(parameters[0]) or target[0].weight_values is parameters[0]
    assert same_bits(load(path)["0.weight"], layer.weight)
    plain = load(path, nn.Sequential(nn.Linear(columns, rows, bias, dtype=dtype)), dense=True)
    assert type(plain[0]) is nn.Linear
    assert same_bits(plain[0].weight, layer.weight)


def test_a_whole_model_comes_back(tmp_path: Path) -> None:
    model = Mixed()
    model.norm(torch.randn(4, 30))  # statistics other than those of a new model
    path = tmp_path / "m.safetensors"
    history = [{"method": "rigl", "sparsity": 0.9, "steps": [1, 2]}, {"method": "grow"}]
    save(model, path, history=history)
    target = Mixed(sparse=False, seed=1)
    load(path, into=target)
    assert isinstance(target.body[2], SparseLinear)
    assert target.body[2].weight_values[3] == 0
    assert target.head.weight is target.embedding.weight
    assert target.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name
    x = torch.randn(4, 30)
    assert torch.equal(model.eval()(x), target.eval()(x))
    state = load(path)
    assert state.keys() == Mixed(sparse=False).state_dict().keys()
    assert state["norm.num_batches_tracked"].dtype == torch.int64
    report = inspect(path)
    assert report.history == tuple(history)
    assert report.sparse_layers == ("body.0", "body.2")
    assert {row.name: row.layout for row in report.rows}["conv.weight"] == "bitmask"
    assert "head.weight" not in {row.name for row in report.rows}
    assert {row.name: row.kept for row in report.rows}["body.2.weight"] == 20
    assert report.nbytes == path.stat().st_size
    assert re.search(r"body\.2\.weight +30x40 +float32 +bitmask +20 +0\.0167 +230\n", str(report))
    assert names(tmp_path) == ["m.safetensors"]


def test_trainable_and_training_carry_over_to_replaced_layers(tmp_path: Path) -> None:
    save(nn.Sequential(SparseLinear(4, 3, sparsity=0.5)), tmp_path / "m")
    target = nn.Sequential(nn.Linear(4, 3)).eval()
    target[0].bias.requires_grad_(False)
    load(tmp_path / "m", target)
    assert not target[0].training
    assert target[0].weight_values.requires_grad
    assert not target[0].bias.requires_grad


def test_one_layer_under_two_names_stays_one(tmp_path: Path) -> None:
    layer = SparseLinear(6, 6, kept=5)
    save(nn.Sequential(layer, nn.ReLU(), layer), tmp_path / "m")
    assert [row.name for row in inspect(tmp_path / "m").rows] == ["0.weight", "0.bias"]
    dense = nn.Linear(6, 6)
    target = load(tmp_path / "m", nn.Sequential(dense, nn.ReLU(), dense))
    assert target[0] is target[2]
    assert torch.equal(target[0].weight, layer.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nine_tenths_of_zeros_make_a_fifth_of_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.randn(512, 384, generator=generator()).to(dtype)
    sparse = SparseLinear(384, 512, False, sparsity=0.9, dtype=dtype)
    pruned = weight * (torch.rand(512, 384, generator=generator(1)) < 0.1)  # which leaves many a -0.0
    for name, model in {
        "sparse": nn.Sequential(sparse),
        "pruned": Holder(w=pruned),
        "dense": Holder(w=weight),
    }.items():
        save(model, tmp_path / name)
    size = {name: (tmp_path / name).stat().st_size for name in ("sparse", "pruned", "dense")}
    assert size["sparse"] <= 0.2 * size["dense"]
    assert size["pruned"] <= 0.2 * size["dense"]
    assert torch.equal(load(tmp_path / "pruned")["w"], pruned)


@pytest.mark.parametrize(
    ("columns", "density", "layout", "column_dtype"),
    [
        (256, 0.99, "dense", None),
        (256, 0.10, "bitmask", None),
        (256, 0.04, "csr", torch.uint16),
        (65535, 0.001, "csr", torch.uint16),
        (65536, 0.001, "csr", torch.int32),
    ],
)
def test_the_smallest_layout_is_chosen_and_readable_without_openwork(
    tmp_path: Path, columns: int, density: float, layout: str, column_dtype: torch.dtype | None
) -> None:
    layer = SparseLinear(columns, 64, False, kept=round(density * columns * 64), generator=generator())
    layer.weight_values.data.uniform_(1, 2)
    save(nn.ModuleDict({"fc": layer}), tmp_path / "m")
    (row,) = inspect(tmp_path / "m").rows
    assert row.layout == layout
    arrays = safetensors.torch.load_file(tmp_path / "m")
    assert row.nbytes == sum(array.nbytes for array in arrays.values())
    if layout == "dense":
        assert set(arrays) == {"fc.weight"}
        return
    weight, values = torch.zeros(64, columns), iter(arrays["fc.weight_values"].tolist())
    if layout == "bitmask":
        assert set(arrays) == {"fc.weight_values", "fc.weight_bitmask"}
        for r, c in ((r, c) for r in range(64) for c in range(columns)):
            if int(arrays["fc.weight_bitmask"][r, c // 8]) >> (c % 8) & 1:
                weight[r, c] = next(values)
    else:
        assert set(arrays) == {"fc.weight_values", "fc.weight_crow", "fc.weight_col"}
        assert arrays["fc.weight_col"].dtype == column_dtype
        crow, col = arrays["fc.weight_crow"].tolist(), arrays["fc.weight_col"].tolist()
        for r in range(64):
            for entry in range(crow[r], crow[r + 1]):
                weight[r, col[entry]] = next(values)
    assert torch.equal(weight, layer.weight)


def test_kept_zeros_survive_where_dense_would_be_smaller(tmp_path: Path) -> None:
    mask = torch.rand(20, 30, generator=generator()) < 0.99
    weight = torch.randn(20, 30, generator=generator()) * mask
    weight[mask.nonzero()[5].unbind()] = 0
    save(Holder(w=weight), tmp_path / "m", masks={"w": mask})
    assert inspect(tmp_path / "m").rows[0].layout == "bitmask"
    assert torch.equal(load_masks(tmp_path / "m")["w"], mask)


def test_dense_storage_and_export_read_as_plain_checkpoints(tmp_path: Path) -> None:
    model = Mixed()
    save(model, tmp_path / "dense", storage="dense")
    save(model, tmp_path / "sparse")
    export_dense(model, tmp_path / "from_model")
    export_dense(tmp_path / "sparse", tmp_path / "from_file")
    for name in ("dense", "from_model", "from_file"):
        arrays = safetensors.torch.load_file(tmp_path / name)
        if name == "dense":
            arrays["head.weight"] = arrays["embedding.weight"]  # stored once
        plain = Mixed(sparse=False, seed=2)
        plain.load_state_dict(arrays)
        assert torch.equal(plain.body[2].weight, model.body[2].weight)
        assert torch.equal(plain.head.weight, model.head.weight)
    assert type(load(tmp_path / "dense", Mixed(sparse=False)).body[0]) is nn.Linear
    with pytest.raises(FileError, match="no `openwork` header"):
        load(tmp_path / "from_model")


def test_a_weight_that_a_method_computes_has_its_plain_name(tmp_path: Path) -> None:
    class SoftMask(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * (weight.abs() > 0.4)

    SoftMask.__module__ = "openwork.train.anything"
    model, bare = nn.Sequential(nn.Linear(8, 6)), nn.Sequential(nn.Linear(8, 6))
    parametrize.register_parametrization(model[0], "weight", SoftMask())
    save(model, tmp_path / "m", masks={"0.weight": model[0].weight != 0})
    load(tmp_path / "m", bare)
    assert torch.equal(bare[0].weight, model[0].weight)
    with pytest.raises(FileError, match=r"0\.weight is computed by a method at work"):
        load(tmp_path / "m", model)


def test_a_weight_norm_is_the_models_own(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))

    model = make()
    save(model, tmp_path / "m")
    target = load(tmp_path / "m", make())
    assert torch.equal(target[0].weight, model[0].weight)


# What cannot be saved.


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        (
            {"v": torch.ones(2, 3, dtype=torch.bool)},
            "v: a mask is given, but the model has no such parameter",
        ),
        ({"ww": torch.ones(2, 3, dtype=torch.bool)}, "nearest is 'w'"),
        ({"w": torch.ones(2, 3)}, "w: .*boolean mask of that shape, not float32"),
        ({"w": torch.ones(3, 2, dtype=torch.bool)}, r"not bool \[3, 2\]"),
        ({"w": torch.zeros(2, 3, dtype=torch.bool)}, "w: 6 weights that the mask prunes are not zero"),
    ],
)
def test_masks_that_do_not_fit_are_refused(tmp_path: Path, masks: dict[str, torch.Tensor], told: str) -> None:
    with pytest.raises(FileError, match=told):
        save(Holder(w=torch.ones(2, 3)), tmp_path / "m", masks=masks)
    assert names(tmp_path) == []


def test_models_that_no_file_can_hold_are_refused(tmp_path: Path) -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {}

    path = tmp_path / "m"
    clash = Holder(w=torch.randn(40, 40) * (torch.rand(40, 40) < 0.1), w_values=torch.ones(1))
    everything = torch.ones(3, 4, dtype=torch.bool)
    for model, options, told in [
        (Extra(), {}, "_extra_state: holds a dict"),
        (nn.Linear(2, 2, device="meta"), {}, "weight: is on the meta device"),
        (Holder(w=torch.ones(2).to(torch.complex64)), {}, "w: a file cannot hold torch.complex64"),
        (clash, {}, "w_values would be in the file twice"),
        (nn.Linear(2, 2), {"storage": "pickle"}, "storage is 'sparse' or 'dense', not 'pickle'"),
        (nn.Linear(2, 2), {"history": [{"a": object()}]}, "history"),
        (nn.Linear(2, 2), {"history": ["a"]}, "history"),
        (
            nn.Linear(4, 3),
            {"storage": "dense", "masks": {"weight": everything}},
            "masks are for storage='sparse'",
        ),
        (SparseLinear(4, 3, kept=1), {"masks": {"weight": everything}}, "weight: a sparse layer knows"),
    ]:
        with pytest.raises(FileError, match=told):
            save(model, path, **options)
    assert names(tmp_path) == []


def test_tensors_that_overlap_in_memory_are_saved_apart(tmp_path: Path) -> None:
    memory = torch.arange(12.0)
    model = Holder(a=memory.view(3, 4), b=memory.view(4, 3), c=memory[2:5], d=torch.ones(1).expand(7))
    save(model, tmp_path / "m")
    assert all(torch.equal(load(tmp_path / "m")[name], tensor) for name, tensor in model.state_dict().items())


# Where it cannot be saved. What was there before must survive.


def test_missing_folder_and_folder_instead_of_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"there is no folder .*nowhere; make it first"):
        save(nn.Linear(2, 2), tmp_path / "nowhere" / "m")
    with pytest.raises(FileError, match="this is a folder"):
        save(nn.Linear(2, 2), tmp_path)
    with pytest.raises(FileError, match="there is no such file"):
        load(tmp_path / "m")
    with pytest.raises(FileError, match="not a file"):
        load(tmp_path)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    save(nn.Linear(2, 2), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "target").keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    "broken", ["openwork.files.container.save_file", "openwork.durable._flush", "pathlib.Path.replace"]
)
def test_a_failure_on_the_way_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "m"
    save(Holder(w=torch.ones(3)), path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(FileError, match=r"Permission denied.*untouched"):
        save(Holder(w=torch.zeros(3)), path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["m"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A real refusal by the system, in a process whose files may not grow beyond 64 KiB."""
    path = tmp_path / "m"
    save(Holder(w=torch.ones(3)), path)
    before = path.read_bytes()
    script = f"""
import torch
from torch import nn
from openwork.files import FileError, save
try:
    save(nn.Linear(300, 300), {str(path)!r})
except FileError as error:
    print(error)
"""
    limited = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16)),
    )
    assert "could not write" in limited.stdout, limited.stderr
    assert path.read_bytes() == before
    assert names(tmp_path) == ["m"]


# What does not fit the model.


def test_a_file_of_torch_is_named_as_one(tmp_path):
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "model.pt")
    refused(tmp_path / "model.pt", nn.Linear(2, 3), "as torch.save writes it: read it with torch.load")


def test_what_is_no_model_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match=r"got str: save\(model, path\)"):
        save("model.safetensors", nn.Linear(2, 3))


def refused(path: Path, model: nn.Module, told: str, **options: bool) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [type(module) for module in model.modules()]
    with pytest.raises(FileError, match=told):
        load(path, model, **options)
    assert [type(module) for module in model.modules()] == modules
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_models_that_do_not_fit_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save(nn.ModuleDict({"a": SparseLinear(5, 4, kept=6), "b": nn.Linear(4, 3)}), path)

    def pair(a: nn.Module, b: nn.Module, name: str = "b") -> nn.Module:
        return nn.ModuleDict({"a": a, name: b})

    class Special(nn.Linear):
        pass

    good = nn.Linear(5, 4)
    refused(
        path, pair(good, nn.Linear(4, 3), "bb"), "bb.weight is not in the file; the nearest is 'b.weight'"
    )
    refused(path, pair(good, nn.Linear(4, 3, bias=False)), "the file's b.bias is not in the model")
    refused(path, pair(good, nn.Linear(4, 2)), r"b.weight is \[3, 4\] in the file and \[2, 4\] in the model")
    refused(path, pair(good, nn.Linear(4, 3).half()), "b.weight is torch.float32 .* torch.float16 .*to()")
    refused(path, pair(SparseLinear(5, 3, kept=2), nn.Linear(4, 3)), r"a.weight is \[4, 5\] in the file")
    refused(path, pair(Special(5, 4), nn.Linear(4, 3)), "a.weight was saved from .* a is a Special here")
    refused(path, pair(good, SparseLinear(4, 3, kept=2)), "b.weight was saved without a topology")
    load(path, pair(Special(5, 4), nn.Linear(4, 3)), dense=True)
    save(SparseLinear(5, 4, kept=6), path)
    refused(path, nn.Linear(5, 4), "the layer is the whole model")
    save(Holder(a=torch.zeros(3), b=torch.ones(3)), path)
    tied = Holder(a=torch.ones(3), b=torch.ones(3))
    tied.b = tied.a
    refused(path, tied, "b and a are one tensor in the model and differ in the file")


# Files that are wrong. The header is edited and signed again, as a mistaken or hostile writer would.

Header = dict[str, object]


def parts(path: Path) -> tuple[dict[str, torch.Tensor], Header]:
    with safetensors.safe_open(path, "pt") as file:
        header: Header = json.loads(file.metadata()["openwork"])
    return safetensors.torch.load_file(path), header


def forge(path: Path, arrays: dict[str, torch.Tensor], header: Header | str, hashes: bool = True) -> None:
    import hashlib

    if not isinstance(header, str):
        if hashes:
            header["sha256"] = {key: array_digest(array) for key, array in arrays.items()}
        header = json.dumps(header)
    digest = hashlib.sha256(header.encode()).hexdigest()
    safetensors.torch.save_file(arrays, path, {"format": "pt", "openwork": header, "openwork_sha256": digest})


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A file with every layout: bitmask ``a`` 6x20, csr ``b`` 8x200, csr ``c`` [4, 20, 5], dense ``d``."""
    topology = CSR.random((6, 20), 40, generator(1))
    model = Holder(c=torch.zeros(4, 20, 5), d=torch.randn(3, generator=generator(4)))
    with torch.no_grad():
        model.c.flatten()[::97] = 1.0
    model.a, model.b = (
        SparseLinear.from_values(topology, torch.randn(40, generator=generator(3))),
        SparseLinear(200, 8, False, kept=30, generator=generator(2)),
    )
    path = tmp_path / "sound"
    save(model, path, history=[{"method": "x"}])
    layouts = {row.name: row.layout for row in inspect(path).rows}
    assert [layouts[name] for name in ("a.weight", "b.weight", "c", "d")] == [
        "bitmask",
        "csr",
        "csr",
        "dense",
    ]
    return path


Edit = Callable[[dict[str, torch.Tensor], Header], None]


def at(header: Header, *keys: str) -> dict[str, object]:
    for key in keys:
        header = header[key]  # type: ignore[assignment]
    return header


def write_to(name: str, index: int, value: int) -> Edit:
    def edit(arrays: dict[str, torch.Tensor], header: Header) -> None:
        arrays[name][index] = value

    return edit


def entry(name: str, **fields: object) -> Edit:
    def edit(arrays: dict[str, torch.Tensor], header: Header) -> None:
        at(header, "tensors", name).update(fields)

    return edit


def field(**fields: object) -> Edit:
    return lambda arrays, header: header.update(fields)


def swap(arrays: dict[str, torch.Tensor], header: Header) -> None:
    col, crow = arrays["b.weight_col"], arrays["b.weight_crow"]
    start = int(crow[int(crow.diff().argmax())])
    first, second = col[start : start + 2].tolist()
    col[start], col[start + 1] = second, first


def unmark(arrays: dict[str, torch.Tensor], header: Header) -> None:
    arrays["a.weight_bitmask"][2] = 0


def behind(arrays: dict[str, torch.Tensor], header: Header) -> None:
    arrays["a.weight_bitmask"][2, 2] |= 128


def move(old: str, new: str) -> Edit:
    def edit(arrays: dict[str, torch.Tensor], header: Header) -> None:
        arrays[new] = arrays.pop(old)

    return edit


def retype(name: str, dtype: torch.dtype) -> Edit:
    def edit(arrays: dict[str, torch.Tensor], header: Header) -> None:
        arrays[name] = arrays[name].to(dtype)

    return edit


def stub(name: str, size: int, dtype: torch.dtype) -> Edit:
    def edit(arrays: dict[str, torch.Tensor], header: Header) -> None:
        arrays[name] = torch.zeros(size, dtype=dtype)

    return edit


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (write_to("b.weight_col", 3, 200), "b.weight: row .* names column 200"),
        (swap, "b.weight: row .* ascend"),
        (write_to("b.weight_crow", 2, 1000), "b.weight: row 2 starts at entry 1000"),
        (write_to("b.weight_crow", 2, -5), "b.weight: row 1 starts .* ends before it"),
        (write_to("b.weight_crow", 0, 1), "b.weight: row 0 starts at entry 1"),
        (write_to("b.weight_crow", 8, 29), "b.weight: row 7"),
        (write_to("c_col", 0, 100), "c: row 0 names column 100"),
        (unmark, "a.weight: declared to keep 40 connections"),
        (behind, "a.weight: row 2 has a bit set behind its last column, 19"),
        (retype("b.weight_col", torch.int64), "b.weight_col must be torch.uint16"),
        (retype("b.weight_crow", torch.int64), "b.weight_crow must be torch.int32"),
        (retype("d", torch.float64), "d must be torch.float32"),
        (move("d", "dd"), "the array d is missing; the nearest is 'dd'"),
        (move("a.weight_bitmask", "a.weight_mask"), "the array a.weight_bitmask is missing"),
        (lambda arrays, header: arrays.update(more=torch.ones(1)), "the array more belongs to no tensor"),
        (
            lambda arrays, header: arrays.update(more=torch.empty(0, dtype=torch.uint8)),
            "the array more belongs to no tensor",
        ),
        (stub("a.weight", 0, torch.uint8), None),
        (stub("a.weight", 1, torch.uint8), "the array a.weight belongs to no tensor"),
        (stub("a.weight", 0, torch.float32), "the array a.weight belongs to no tensor"),
        (stub("d", 0, torch.uint8), "d must be torch.float32"),
        (lambda arrays, header: arrays.pop("a.weight_values"), "the array a.weight_values is missing"),
        (entry("a.weight", layout="braille"), "a.weight is stored in an unknown layout 'braille'"),
        (entry("a.weight", layout="csr"), "a.weight_crow is missing"),
        (entry("a.weight", layout=3), "a.weight is not described"),
        (entry("a.weight", shape=[6, 21]), None),  # the very bits of a matrix with one more column
        (entry("a.weight", shape=[6, 25]), "a.weight_bitmask must be"),
        (entry("a.weight", shape=[6, 19]), "a.weight: row .* behind its last column, 18"),
        (entry("a.weight", shape=[7, 20]), "a.weight_bitmask must be"),
        (entry("a.weight", shape=[-6, -20]), "a.weight cannot have the shape"),
        (entry("a.weight", shape=[6]), "a.weight of shape .* cannot keep 40"),
        (entry("a.weight", shape="x"), "a.weight is not described"),
        (entry("a.weight", kept=39), "a.weight_values must be"),
        (entry("a.weight", kept=-1), "a.weight of shape .* cannot keep -1"),
        (entry("a.weight", kept=None), "a.weight is stored as bitmask without saying"),
        (entry("a.weight", kept=10**30), "a.weight of shape .* cannot keep 10000"),
        (entry("a.weight", dtype="float33"), "a.weight has an unknown dtype .* nearest is 'float32'"),
        (entry("a.weight", dtype="float16"), "a.weight_values must be torch.float16"),
        (entry("a.weight", extra=1), "a.weight is not described"),
        (entry("b.weight", shape=[8, 2**40]), "b.weight"),
        (entry("b.weight", shape=[8, 2**31]), "b.weight"),
        (entry("b.weight", shape=[2**31, 200]), "b.weight_crow must be"),
        (entry("c", shape=[4, 100]), None),  # the same matrix: nothing is wrong with it
        (entry("d", shape=[2**40, 2**40]), "d cannot have the shape"),
        (entry("d", kept=3), "d of shape .* cannot keep 3"),
        (lambda arrays, header: at(header, "tensors").pop("d"), "the array d belongs to no tensor"),
        (lambda arrays, header: at(header, "tensors").update(e=[]), "e is not described"),
        (lambda arrays, header: at(header, "tensors").update(e={}), "e is not described"),
        (field(format_version=2), "written in format 2, .* up to 1: update openwork"),
        (field(format_version=0), "there is no format 0"),
        (field(format_version="1"), "header is not one of format 1"),
        (field(openwork=1), "header is not one of format 1"),
        (field(more=1), "header is not one of format 1.*more"),
        (field(sparse_layers=["d"]), "'d' is declared a sparse layer without a d.weight"),
        (field(sparse_layers=[""]), "'' is declared a sparse layer without a weight"),
        (field(shared={"x": "y"}), "x cannot be another name of y"),
        (field(shared={"d": "c"}), "d cannot be another name of c"),
        (field(tensors=[]), "header is not one of format 1"),
        (field(history=[1]), "header is not one of format 1"),
        (lambda arrays, header: header.pop("history"), "header is not one of format 1.*history"),
    ],
)  # fmt: skip
def test_signed_nonsense_is_refused_by_name(
    sound: Path, tmp_path: Path, edit: Edit, told: str | None
) -> None:
    arrays, header = parts(sound)
    edit(arrays, header)
    forge(tmp_path / "forged", arrays, header)
    if told is None:
        load(tmp_path / "forged")
        return
    with pytest.raises(FileError, match=told):
        load(tmp_path / "forged")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "1", '"x"', "[" * 100_000, '{"format_version": ' * 100_000,
     '{"format_version": 1}',
     '{"format_version": 1e999}', '{"format_version": 99999999999999999999999}', "\x00", "é" * 100],
)  # fmt: skip
def test_headers_that_are_no_headers_are_refused(sound: Path, tmp_path: Path, text: str) -> None:
    forge(tmp_path / "forged", parts(sound)[0], text)
    with pytest.raises(FileError, match="header"):
        load(tmp_path / "forged")


def test_wrong_hashes_are_refused_by_name(sound: Path, tmp_path: Path) -> None:
    arrays, header = parts(sound)
    for key in arrays:
        changed = {name: array.clone() for name, array in arrays.items()}
        changed[key].view(torch.uint8).flatten()[0] ^= 1
        forge(tmp_path / "forged", changed, header, hashes=False)
        with pytest.raises(FileError, match=f"{key} does not match its SHA-256"):
            load(tmp_path / "forged")
        shorter = {name: digest for name, digest in at(header, "sha256").items() if name != key}
        forge(tmp_path / "forged", arrays, header | {"sha256": shorter}, hashes=False)
        with pytest.raises(FileError, match=f"no SHA-256 is given for {key}"):
            load(tmp_path / "forged")


def test_a_small_file_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    layer = SparseLinear(2**26 - 1, 100_000, False, kept=3, generator=generator())
    path = tmp_path / "bomb"
    save(nn.Sequential(layer), path)
    assert path.stat().st_size < 500_000
    for read in (load, load_masks):
        with pytest.raises(FileError, match="above the limit"):
            read(path)
    target = load(
        path, nn.Sequential(SparseLinear(2**26 - 1, 100_000, False, kept=0))
    )  # which needs no dense tensor
    assert target[0].topology == layer.topology
    save(Holder(w=torch.zeros(100, 100)), path)
    with pytest.raises(FileError, match="40000 of dense tensors, above the limit of 39999"):
        load(path, limit_bytes=39_999)
    assert load(path, limit_bytes=40_000)["w"].shape == (100, 100)


def test_every_flipped_bit_of_the_header_is_noticed(sound: Path, tmp_path: Path) -> None:
    whole, damaged = sound.read_bytes(), tmp_path / "damaged"
    for place in range(8 + struct.unpack("<Q", whole[:8])[0]):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        damaged.write_bytes(data)
        with pytest.raises(FileError):
            load(damaged)


@pytest.mark.parametrize("seed", range(8))
def test_every_damage_is_noticed(sound: Path, tmp_path: Path, seed: int) -> None:
    """Bits flipped anywhere, bytes cut off, added, moved, overwritten; other header lengths: 50 each."""
    whole, chance, damaged = sound.read_bytes(), random.Random(seed), tmp_path / "damaged"
    length = 8 + struct.unpack("<Q", whole[:8])[0]
    for _ in range(50):
        data = bytearray(whole)
        kind = chance.choice(["flip", "flip head", "cut", "add", "zero", "move", "length", "swap", "repeat"])
        place, other = chance.randrange(len(data)), chance.randrange(len(data))
        if kind == "flip":
            data[place] ^= 1 << chance.randrange(8)
        elif kind == "flip head":
            data[chance.randrange(length)] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del data[place:]
        elif kind == "add":
            data += bytes(chance.randrange(1, 20))
        elif kind == "zero":
            data[place : place + 16] = bytes(len(data[place : place + 16]))
        elif kind == "move":
            del data[place : place + chance.randrange(1, 9)]
        elif kind == "length":
            data[:8] = struct.pack("<Q", chance.choice([0, 1, length, length - 9, 2**40, 2**63, 2**64 - 1]))
        elif kind == "swap":
            data[place], data[other] = data[other], data[place]
        else:
            data[place:place] = data[place : place + chance.randrange(1, 50)]
        if bytes(data) == whole:
            continue
        damaged.write_bytes(data)
        with pytest.raises(FileError):
            load(damaged)


def test_header_numbers_may_be_anything_but_believed(sound: Path, tmp_path: Path) -> None:
    """200 signed edits of one number or name: each is refused by name, or the file is as it says."""
    chance, forged = random.Random(1), tmp_path / "forged"
    outcomes = set()
    for _ in range(200):
        arrays, header = parts(sound)
        name = chance.choice(list(at(header, "tensors")))
        described = at(header, "tensors", name)
        key = chance.choice(list(described))
        number = chance.choice([-1, 0, 1, 2, 7, 255, 65535, 65536, 2**31 - 1, 2**31, 2**62, 2**63])
        if key == "shape":
            shape = list(described["shape"])  # type: ignore[call-overload]
            shape[chance.randrange(len(shape))] = number
            described["shape"] = shape
        elif key == "kept":
            described["kept"] = number
        else:
            described[key] = chance.choice(
                ["dense", "csr", "bitmask", "float64", "bfloat16", "int8", "", "x"]
            )
        if header == parts(sound)[1]:
            continue
        forge(forged, arrays, header)
        try:
            state = load(forged)
        except FileError as error:
            told = str(error)
            outcomes.add("refused" if name in told else told)
        else:
            assert list(state[name].shape) == described["shape"]
            outcomes.add("harmless")
    assert outcomes - {"harmless"} == {"refused"}
