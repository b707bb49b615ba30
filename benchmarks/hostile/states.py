"""What ``load_state_dict`` is given: the indices of every layer that has some, and the state of a sparsifier."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch
from torch import nn

import openwork as ow
from hostile.changes import NUMBERS, edit_tensor, edit_tree
from hostile.reader import Reader
from openwork.calibrator.storage import to_quantized_
from openwork.layouts.csr import CSR
from openwork.layouts.dense import Dense
from openwork.layouts.group_int4 import GroupInt4Linear
from openwork.layouts.layout import layouts
from openwork.layouts.packed import PackedLinear
from openwork.quantization import IntegerGrid
from openwork.sparsifier import Training


def strange(chance: random.Random) -> object:
    """What no state holds."""
    return chance.choice(
        [None, -1, 10**30, 1.5, "x", [], {}, True, torch.zeros(2, 3), torch.tensor([-1]), torch.tensor([0, 0]),
         torch.tensor([2**40]), torch.tensor(float("nan")), torch.zeros(0, dtype=torch.int64), torch.empty(3, device="meta"),
         torch.tensor(1).expand(2**40), chance.choice(NUMBERS)]
    )  # fmt: skip


def other(found: object, chance: random.Random) -> object:
    """Something in place of a part of a state."""
    return (
        edit_tensor(found, chance)
        if isinstance(found, torch.Tensor) and chance.random() < 0.8
        else strange(chance)
    )


def quantised(recipe: ow.Method, inputs: int) -> nn.Module:
    """The layer that holds the codes of a recipe."""
    g = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(inputs, 9))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(9, inputs, generator=g))
    found = ow.sparsify_(
        model, [ow.Magnitude(sparsity=0.5), recipe], data=[torch.randn(40, inputs, generator=g)]
    )
    to_quantized_(model, found)
    return model[0]


def packed(mask: torch.Tensor) -> list[nn.Module]:
    """The layer with these connections in every layout that suits it."""
    topology, batch = CSR.from_mask(mask), 8
    values = torch.randn(topology.kept, generator=torch.Generator().manual_seed(1))
    suited = [cls for cls in layouts(torch.bfloat16) if cls.unsuited(topology, values, batch) is None]
    return [
        PackedLinear.pack(topology, values, None, {batch: cls.build(topology, values, batch)}, "none")
        for cls in suited
        if not issubclass(cls, Dense)
    ]


def layers() -> list[tuple[nn.Module, torch.Tensor]]:
    """Every kind of layer with indices in its state, and an input for it."""
    g = torch.Generator().manual_seed(0)
    images, numbers = torch.ones(2, 4, 9, 9), torch.tensor([[0, 3, 10]])
    scattered = torch.rand(32, 64, generator=g) < 0.1
    blocks = (torch.rand(4, 16, generator=g) < 0.4).repeat_interleave(8, 0).repeat_interleave(4, 1)
    pairs = torch.tensor([True, False, True, False]).repeat(32, 16)
    return [(layer, torch.ones(8, 64)) for mask in (scattered, blocks, pairs) for layer in packed(mask)] + [
        (ow.SparseLinear(12, 9, kept=30, generator=g), torch.ones(3, 12)),
        (
            ow.SparseLinear(12, 9, kept=30, generator=g, dtype=torch.bfloat16),
            torch.ones(40, 12, dtype=torch.bfloat16),
        ),
        (ow.SparseConv2d(4, 6, 3, kept=40, generator=g), images),
        (ow.SparseEmbedding(11, 8, kept=30, generator=g), numbers),
        (GroupInt4Linear.from_dense(torch.randn(9, 40, generator=g)), torch.ones(3, 40)),
        (quantised(ow.GPTQ(grid=IntegerGrid(3)), 24), torch.ones(3, 24)),
        (quantised(ow.SpQR(), 32), torch.ones(3, 32)),
    ]


class Layers(Reader):
    """A layer takes a state whole or not at all, and computes with its own indices afterwards."""

    refusals = (RuntimeError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.layers = [(layer, x, copy.deepcopy(layer.state_dict())) for layer, x in layers()]

    def change(self, chance: random.Random) -> tuple[str, list[str]]:
        self.layer, self.x, sound = chance.choice(self.layers)
        self.layer.load_state_dict(sound)
        self.state: dict[str, Any] = dict(sound)
        name = chance.choice(list(sound))
        kind = chance.choice(["other", "other", "other", "dropped", "more"])
        if kind == "other":
            self.state[name] = other(sound[name], chance)
        elif kind == "dropped":
            del self.state[name]
        else:
            self.state[f"{name}_bitmask"] = self.state[f"{chance.choice(['x', name])}"] = other(
                sound[name], chance
            )
        return f"{type(self.layer).__name__}: {kind}", [
            name.partition("_")[0].rstrip("s")
        ] if kind == "other" else []

    def read(self, chance: random.Random) -> None:
        try:
            self.layer.load_state_dict(self.state)
        finally:
            with torch.no_grad():
                assert len(self.layer(self.x)) == len(self.x)


class Sparsifiers(Reader):
    """A run goes on from a state of its own, and from no other; one that is refused has changed nothing."""

    refusals = (ValueError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        asked: list[tuple[type[Training], bool]] = [
            (ow.RigL, False),
            (ow.SET, True),
            (ow.SNFS, False),
            (ow.DeepR, True),
        ]
        self.runs = [self._begun(kind, stored) for kind, stored in asked]

    @staticmethod
    def _begun(kind: type[Training], stored: bool) -> tuple[ow.Sparsifier, dict[str, Any]]:
        model = nn.Sequential(nn.Linear(9, 12), nn.Linear(12, 4))
        options = {"steps": 20, "allocation": "uniform"} | ({} if kind is ow.DeepR else {"every": 3})
        method = kind(sparsity=0.6, **options)
        if stored:
            ow.to_sparse_(model, method)
        sparsifier = ow.attach(model, None, method)
        return sparsifier, copy.deepcopy(sparsifier.state_dict())

    def change(self, chance: random.Random) -> tuple[str, list[str]]:
        self.sparsifier, self.sound = chance.choice(self.runs)
        self.state: dict[str, Any] = copy.deepcopy(self.sound)
        key = chance.choice(list(self.state))
        part = self.state[key]
        if isinstance(part, dict) and part and chance.random() < 0.7:
            name = chance.choice(list(part))
            if isinstance(part[name], dict) and part[name]:
                part[name] = {what: other(tensor, chance) for what, tensor in part[name].items()}
            else:
                part[name] = other(part[name], chance)
        elif chance.random() < 0.2:
            del self.state[key]
        elif key == "method":
            self.state[key] = edit_tree(part, chance)
        else:
            self.state[key] = other(part, chance)
        return f"sparsifier: {key}", []

    def read(self, chance: random.Random) -> None:
        before = {name: c.positions.clone() for name, c in self.sparsifier.connections.items()}
        try:
            self.sparsifier.load_state_dict(self.state)
        except ValueError:
            assert all(torch.equal(p, self.sparsifier.connections[n].positions) for n, p in before.items())
            raise
        finally:
            for c in self.sparsifier.connections.values():
                assert bool((c.positions.diff() > 0).all())
                assert not c.kept or 0 <= int(c.positions[0]) <= int(c.positions[-1]) < c.numel
        self.sparsifier.load_state_dict(self.sound)
