"""Files of format 1, written once and kept in ``tests/golden``: they stay readable, and hold exactly what they held.

``python tests/test_golden_files.py`` writes the files that are missing; one that is there is never written again.
"""

import random
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.files import inspect, load, load_masks, save
from openwork.files.header import DTYPES, FORMAT_VERSION
from openwork.layouts.stored import LAYOUTS

GOLDEN = Path(__file__).parent / "golden"
NUMBERS = [-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0]
"""Every floating-point dtype holds these exactly."""

SHAPES = {
    "dense": ((3, 5), 1.0),
    "bitmask": ((6, 20), 0.3),
    "csr": ((4, 50, 4), 0.02),
    "csr wide": ((2, 70_000), 5 / 140_000),
}


class Tensors(nn.Module):
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def named(dtype: str) -> str:
    """``nn.Module`` has methods of the names of dtypes."""
    return f"of_{dtype}"


def drawn(
    seed: str, shape: tuple[int, ...], density: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor and its mask, from Python's generator, which gives the same numbers in every version."""
    chance, total = random.Random(seed), torch.Size(shape).numel()
    mask = torch.zeros(total, dtype=torch.bool)
    mask[sorted(chance.sample(range(total), max(1, round(density * total))))] = True
    numbers = [0, 1] if dtype == torch.bool else [0, 1, 7, 100] if not dtype.is_floating_point else NUMBERS
    numbers = [number for number in numbers if number or density < 1]  # a zero would make a dense file sparse
    values = torch.zeros(total, dtype=torch.float64)
    values[mask] = torch.tensor([chance.choice(numbers) for _ in range(int(mask.sum()))], dtype=torch.float64)
    return values.to(dtype).view(shape), mask.view(shape)


def tensors(kind: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What the file ``kind`` holds: tensors and masks by name."""
    shape, density = SHAPES[kind]
    made = {named(name): drawn(f"{kind} {name}", shape, density, dtype) for name, dtype in DTYPES.items()}
    masks = {} if kind == "dense" else {name: mask for name, (_, mask) in made.items()}
    return {name: tensor for name, (tensor, _) in made.items()}, masks


def dense() -> nn.ModuleDict:
    model = nn.ModuleDict({"a": nn.Linear(12, 8), "b": nn.Linear(4, 12), "c": nn.BatchNorm1d(4)})
    model["d"] = nn.Linear(4, 12, bias=False)
    model["d"].weight = model["b"].weight
    return model


def network() -> nn.ModuleDict:
    """Layers of both storages, a tied weight, a grown connection, a buffer."""
    layer, mask = drawn("layer", (8, 12), 0.3, torch.float32)
    model = dense()
    model["a"] = ow.SparseLinear.from_linear(model["a"], mask)
    with torch.no_grad():
        model["a"].weight_values.copy_(layer[mask])
        model["a"].weight_values[3] = 0
        for name, parameter in model.named_parameters():
            if not name.endswith("weight_values"):
                parameter.copy_(drawn(name, tuple(parameter.shape), 1.0, torch.float32)[0])
    return model


HISTORY = [{"method": "rigl", "sparsity": 0.7}, {"method": "x", "nested": [1, None, "é"]}]


def write() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for kind in SHAPES:
        if not (path := GOLDEN / f"{kind}.safetensors").exists():
            held, masks = tensors(kind)
            save(Tensors(held), path, masks=masks)
    if not (path := GOLDEN / "network.safetensors").exists():
        save(network(), path, history=HISTORY)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = [t.detach().contiguous().flatten().view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


@pytest.mark.parametrize("kind", SHAPES)
def test_every_layout_and_dtype_stays_readable(kind: str) -> None:
    path = GOLDEN / f"{kind}.safetensors"
    expected, masks = tensors(kind)
    report, found = inspect(path), load(path)
    assert report.format_version == 1 == FORMAT_VERSION
    assert {row.layout for row in report.rows} == {kind.split()[0]}
    assert found.keys() == expected.keys()
    assert all(same(found[name], tensor) for name, tensor in expected.items())
    if masks:
        assert all(torch.equal(load_masks(path)[name], mask) for name, mask in masks.items())
    target = load(path, Tensors({name: torch.zeros_like(tensor) for name, tensor in expected.items()}))
    assert all(same(parameter, expected[name]) for name, parameter in target.named_parameters())


def test_a_network_stays_readable() -> None:
    expected, path = network(), GOLDEN / "network.safetensors"
    target = load(path, dense())
    assert isinstance(target["a"], ow.SparseLinear)
    found = target.state_dict()
    assert all(same(found[name], tensor) for name, tensor in expected.state_dict().items())
    assert inspect(path).history == tuple(HISTORY)


def test_no_layout_is_without_a_file() -> None:
    assert {kind.split()[0] for kind in SHAPES} == set(LAYOUTS)
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 100_000


if __name__ == "__main__":
    sys.exit(write())
