"""Files of :func:`openwork.save`: the table of safetensors, the header in JSON, the arrays and their indices."""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from hostile.changes import NUMBERS, WORDS, anything, damage
from hostile.reader import Reader
from openwork.files import FileError, inspect, load, load_masks, save
from openwork.files.header import DTYPES, array_digest
from openwork.layouts.csr import CSR
from openwork.layouts.group_int4 import GroupInt4Linear
from openwork.layouts.linear import SparseLinear

LIMIT = 64 << 20


class Net(nn.Module):
    """Every layout of a file, and layers of both storages that compute with what was loaded."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.a = SparseLinear.from_values(CSR.random((6, 20), 40, g), torch.randn(40, generator=g).to(dtype))
        self.b = SparseLinear.from_values(CSR.random((8, 200), 30, g), torch.randn(30, generator=g).to(dtype))
        self.c = nn.Conv1d(20, 4, 5).to(dtype)
        self.d = nn.Linear(3, 5).to(dtype)
        with torch.no_grad():
            for p in (*self.c.parameters(), *self.d.parameters()):
                p.copy_(torch.randn(p.shape, generator=g))
            self.c.weight.mul_(torch.rand(self.c.weight.shape, generator=g) < 0.05)
        self.register_buffer("count", torch.tensor(3))

    def compute(self) -> None:
        dtype = self.d.weight.dtype
        self.a(torch.ones(3, 20, dtype=dtype))
        self.b(torch.ones(33, 200, dtype=dtype))


class Dense(nn.Module):
    """A model without a sparse layer, empty tensors among its own."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(9)
        self.w = nn.Parameter(torch.randn(30, 40, generator=g) * (torch.rand(30, 40, generator=g) < 0.04))
        self.empty = nn.Parameter(torch.zeros(4, 0))
        self.tied = self.w

    def compute(self) -> None:
        torch.ones(2, 40) @ self.w.T


class Coded(nn.Module):
    """An ordinary layer where the file has groups of 4-bit codes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(40, 9, bias=False)

    def compute(self) -> None:
        self.a(torch.ones(3, 40))


def corpus(folder: Path) -> list[tuple[Path, type[nn.Module], dict[str, torch.dtype]]]:
    """Sound files, and how to build the model that each was saved from."""
    files = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        path = folder / str(dtype)
        save(Net(dtype), path, history=[{"method": "x"}])
        files.append((path, Net, {"dtype": dtype}))
    save(
        Dense(),
        folder / "dense",
        masks={"w": torch.ones(30, 40, dtype=torch.bool), "empty": torch.ones(4, 0) > 0},
    )
    coded = Coded()
    coded.a = GroupInt4Linear.from_dense(torch.randn(9, 40, generator=torch.Generator().manual_seed(2)))
    save(coded, folder / "coded")
    return [*files, (folder / "dense", Dense, {}), (folder / "coded", Coded, {})]


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["openwork"])
    return load_file(path), header


def forge(path: Path, arrays: dict[str, torch.Tensor], header: object, hashes: bool) -> None:
    """Write arrays and header as ``save`` would, with checksums that fit or with those of before."""
    if hashes and isinstance(header, dict) and isinstance(header.get("sha256"), dict):
        header["sha256"] = {key: array_digest(array) for key, array in arrays.items()}
    text = json.dumps(header)
    metadata = {
        "format": "pt",
        "openwork": text,
        "openwork_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    save_file(arrays, path, metadata)


def cut_in_table(whole: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Change bytes, knowing only where the table of safetensors ends."""
    data, length = bytearray(whole), 8 + struct.unpack("<Q", whole[:8])[0]
    if chance.random() < 0.5:
        data[chance.randrange(length)] ^= 1 << chance.randrange(8)
        return "flip in table", bytes(data)
    data[:8] = struct.pack("<Q", chance.choice([0, 1, length - 9, length, 2**31, 2**40, 2**63, 2**64 - 1]))
    return "length of table", bytes(data)


def lie_in_table(path: Path, whole: bytes, chance: random.Random) -> str:
    """Edit the table of safetensors: shapes, dtypes and offsets of arrays."""
    length = struct.unpack("<Q", whole[:8])[0]
    table = json.loads(whole[8 : 8 + length])
    name = chance.choice([key for key in table if key != "__metadata__"])
    kind = chance.choice(["shape", "dtype", "offsets"])
    if kind == "shape":
        table[name]["shape"] = chance.choice(
            [[2**31, 0], [2**40, 0, 7], [0], [], [1] * 99, [chance.choice(NUMBERS)]]
        )
    elif kind == "dtype":
        table[name]["dtype"] = chance.choice(["F64", "F16", "BOOL", "U8", "I64", "F4", "x", "C64", "F8_E8M0"])
    else:
        table[name]["data_offsets"] = [
            chance.choice([0, 4, 8, 2**40, 2**63]),
            chance.choice([0, 4, 8, 2**40, 2**63]),
        ]
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    return f"table {kind}"


def edit_header(header: dict[str, object], chance: random.Random) -> tuple[str, str | None]:
    """Edit one thing in the header; returns what, and the tensor it belongs to."""
    tensors = header["tensors"]
    assert isinstance(tensors, dict)
    name = chance.choice(list(tensors))
    kind = chance.choice(["shape", "kept", "dtype", "layout", "anything", "field", "drop", "rename", "alias"])
    if kind == "shape":
        shape = tensors[name]["shape"]
        for _ in range(chance.choice([1, 1, 2])):
            if shape:
                shape[chance.randrange(len(shape))] = chance.choice(NUMBERS)
        if chance.random() < 0.2:
            shape += chance.choices([0, 1, 2, 2**31], k=chance.choice([1, 2, 60]))
    elif kind == "kept":
        tensors[name]["kept"] = chance.choice([*NUMBERS, None, 39, 41])
    elif kind == "dtype":
        tensors[name]["dtype"] = chance.choice(WORDS)
    elif kind == "layout":
        tensors[name]["layout"] = chance.choice(["csr", "bitmask", "dense", "x"])
    elif kind == "anything":
        tensors[name][chance.choice([*tensors[name], "more"])] = anything(chance)
    elif kind == "field":
        header[chance.choice([*header, "more"])] = anything(chance)
        return kind, None
    elif kind == "drop":
        del header[chance.choice(list(header))]
        return kind, None
    elif kind == "rename":
        tensors[chance.choice(WORDS)] = tensors.pop(name)
        return kind, None
    else:
        header["shared"] = {chance.choice([*tensors, *WORDS]): chance.choice([*tensors, *WORDS])}
        return kind, None
    return kind, name


def edit_array(arrays: dict[str, torch.Tensor], chance: random.Random) -> tuple[str, str]:
    """Edit one array; returns what, and its name."""
    name = chance.choice([key for key, array in arrays.items() if array.numel()])
    array = arrays[name]
    kind = chance.choice(["entry", "bytes", "nan", "dtype", "length", "shuffle", "empty rows"])
    if kind == "entry" and not array.is_floating_point():
        info, place = torch.iinfo(array.dtype), chance.randrange(array.numel())
        numbers = [n for n in NUMBERS if info.min <= n <= info.max]
        array.view(-1).view(torch.int16 if array.dtype == torch.uint16 else array.dtype)[place] = (
            chance.choice(numbers)
            if array.dtype != torch.uint16
            else chance.choice([-1, 0, 1, 200, 199, 19, 20])
        )
    elif kind == "dtype":
        arrays[name] = array.to(
            chance.choice([torch.float64, torch.int64, torch.int32, torch.uint8, torch.float16])
        )
    elif kind == "length":
        arrays[name] = torch.cat([array.flatten(), array.flatten()])[
            : chance.randrange(2 * array.numel())
        ].clone()
    elif kind == "shuffle":
        arrays[name] = array.flatten().view(torch.uint8).flip(0).view(array.dtype).view(array.shape)
    elif kind == "empty rows":
        arrays[name] = array.new_zeros((chance.choice([2**20, 2**31, 2**40]), 0))
    elif kind == "nan" and array.is_floating_point():
        array.view(-1)[chance.randrange(array.numel())] = chance.choice([float("nan"), float("inf"), -0.0])
    else:
        array.view(-1).view(torch.uint8)[chance.randrange(array.nbytes)] ^= 1 << chance.randrange(8)
    return kind, name


def bomb(
    arrays: dict[str, torch.Tensor], header: dict[str, object], chance: random.Random
) -> tuple[str, str]:
    """Few bytes that say they are many."""
    tensors = header["tensors"]
    assert isinstance(tensors, dict)
    name = chance.choice([n for n in tensors if len(tensors[n]["shape"]) == 2])
    for key in [
        key
        for key in arrays
        if key.startswith((f"{name}_", name)) and key.removeprefix(name)[:1] in ("", "_")
    ]:
        del arrays[key]
    rows, columns = chance.choice(
        [(2**31 - 2, 0), (2**31, 0), (2**40, 0), (2**61, 0), (5, 2**31 - 1), (1, 2**40), (0, 2**40)]
    )
    layout = chance.choice(["dense", "bitmask", "csr"])
    tensors[name] |= {"shape": [rows, columns], "kept": 0, "layout": layout}
    values = torch.zeros(0, dtype=DTYPES[tensors[name]["dtype"]])
    if layout == "dense":
        arrays[name] = values.view(rows, columns) if not rows * columns else values
    else:
        arrays[f"{name}_values"] = values
    if layout == "bitmask":
        arrays[f"{name}_bitmask"] = torch.zeros(0, dtype=torch.uint8).view(
            *((rows, 0) if not columns else (0, 1))
        )
    elif layout == "csr":
        arrays[f"{name}_crow"] = torch.zeros(min(rows + 1, 6), dtype=torch.int32)
        arrays[f"{name}_col"] = torch.zeros(0, dtype=torch.int32 if columns > 0xFFFF else torch.uint16)
    return f"bomb {layout}", name


def attempt(
    path: Path, build: type[nn.Module], options: dict[str, torch.dtype], chance: random.Random
) -> None:
    """Read a file in one of the ways there are; compute with what it holds."""
    way = chance.randrange(6)
    if way == 0:
        inspect(path)
    elif way == 1:
        load_masks(path, limit_bytes=LIMIT)
    elif way == 2:
        load(path, limit_bytes=LIMIT)
    else:
        model = build(**options)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        try:
            load(path, model)
        except FileError:
            after = model.state_dict()
            bits = [
                (t.view(-1).view(torch.uint8), after[n].view(-1).view(torch.uint8)) for n, t in before.items()
            ]
            assert all(torch.equal(one, other) for one, other in bits), (
                "a file that was refused has changed the model"
            )
            raise
        model.compute()  # type: ignore[operator]


def mutate(source: Path, target: Path, chance: random.Random) -> tuple[str, str | None]:
    """Write a changed file; returns what was done, and the name an error must have (None: any)."""
    sort = chance.random()
    if sort < 0.2:
        kind, content = (damage if sort < 0.15 else cut_in_table)(source.read_bytes(), chance)
        target.write_bytes(content)
        return kind, None
    if sort < 0.3:
        return lie_in_table(target, source.read_bytes(), chance), None
    arrays, header = parts(source)
    if sort < 0.65:
        kind, name = edit_header(header, chance)
    elif sort < 0.92:
        kind, name = edit_array(arrays, chance)
    else:
        kind, name = bomb(arrays, header, chance)
    forge(target, arrays, header, hashes=chance.random() < 0.85)
    return kind, name


class SparseFiles(Reader):
    """Read in every way there is: described, as masks, as dense tensors, into a model that then computes."""

    refusals = (FileError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sound, self.target = corpus(folder), folder / "changed"

    def change(self, chance: random.Random) -> tuple[str, list[str]]:
        source, self.build, self.options = chance.choice(self.sound)
        kind, name = mutate(source, self.target, chance)
        told = re.sub("_(values|crow|col|bitmask)$", "", name or "")
        if self.build is Coded:  # its arrays make sense together only
            told = told.partition(".")[0]
        return kind, [f"{self.target}: ", told]

    def read(self, chance: random.Random) -> None:
        attempt(self.target, self.build, self.options, chance)
