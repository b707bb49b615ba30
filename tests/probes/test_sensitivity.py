"""What breaks first."""

import copy

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.probes.sensitivity import Trial, rounded_inputs, sensitivity, trials
from openwork.quantization import IntegerGrid, nearest
from openwork.tasks.gpt import gpt_small


def model() -> nn.Module:
    small = gpt_small(width=16, depth=2, heads=2, context=12)
    with torch.no_grad():
        for p in small.blocks.parameters():
            p.mul_(8 if p.dim() > 1 else 1)
    return small


TOKENS = torch.randint(0, 65, (4, 12), generator=torch.Generator().manual_seed(0))
TARGET = model()(TOKENS).detach()


def evaluate(small: nn.Module) -> float:
    """How far the outputs are from those of the dense model; 0 for that."""
    with torch.no_grad():
        return float((small(TOKENS) - TARGET).square().mean().sqrt())


GRID = [
    Trial("as it is"),
    Trial("int8", (ow.RTN(grid="int8", group=16),)),
    Trial("int3 row", (ow.RTN(grid="int3", group="row"),)),
    Trial("int3 groups", (ow.RTN(grid="int3", group=8),)),
    Trial("int3 groups, inputs", (ow.RTN(grid="int3", group=8),), IntegerGrid(3)),
    Trial("2:4", (ow.Wanda(pattern="2:4"),)),
]


def test_the_table_shows_what_breaks_first_and_the_model_stays() -> None:
    small = model()
    before = copy.deepcopy(small.state_dict())
    found = sensitivity(small, evaluate, data=[TOKENS], grid=GRID, classes=(0.001, 0.05))
    assert all(torch.equal(p, before[name]) for name, p in small.state_dict().items())
    assert found.dense == 0
    score = {cell.trial: cell.score for cell in found.cells}
    assert score["as it is"] == found.dense  # sixteen bits and more: the dense score
    assert 0 < score["int8"] < score["int3 groups"] < score["int3 row"]
    assert score["int3 groups"] < score["int3 groups, inputs"]
    assert found.of("as it is")[0].grade == "I"
    assert found.of("int3 row")[0].grade == "III"
    assert str(found).count("\n") == len(GRID)


def test_one_layer_at_a_time_ranks_layers() -> None:
    small = model()
    found = sensitivity(small, evaluate, data=[TOKENS], grid=GRID[2:3], mode="one_layer")
    assert {cell.layer for cell in found.cells} == {
        f"blocks.{i}.{layer}.weight"
        for i in (0, 1)
        for layer in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")
    }
    changes = [cell.change for cell in found.cells]
    assert changes == sorted(changes, reverse=True)
    assert min(changes) > 0
    worst = found.cells[0].layer
    alone = copy.deepcopy(small)
    with torch.no_grad():
        weight = alone.get_parameter(str(worst))
        weight.copy_(nearest(weight, IntegerGrid(3), "row").dense())
    assert evaluate(alone) == pytest.approx(found.cells[0].score, rel=1e-5)


def test_inputs_are_rounded_token_by_token() -> None:
    linear = nn.Linear(6, 3)
    holder = nn.ModuleDict({"fc": linear})
    x = torch.randn(2, 4, 6)
    with rounded_inputs(holder, ["fc"], IntegerGrid(3)):
        found = linear(x)
    rows = torch.stack([nearest(t[None], IntegerGrid(3)).dense()[0] for t in x.view(8, 6)]).view_as(x)
    assert torch.allclose(found, linear(rows))
    assert not torch.allclose(linear(x), found)


def test_the_study_covers_its_axes() -> None:
    names = [trial.name for trial in trials(groups=("row", 64))]
    assert len(names) == len(set(names)) == 1 + 2 * 2 * 2 * 4 + 2
    assert "int4 symmetric groups of 64 rtn + lorc" in names
    assert "sparse 2:4" in names
    found = sensitivity(
        model(), evaluate, data=[TOKENS], grid=trials(bits=(4,), groups=(8,), sparsities=("2:4",))
    )
    assert len(found.cells) == 10
    with pytest.raises(ValueError, match="one_layer"):
        sensitivity(model(), evaluate, data=[TOKENS], grid=GRID, mode="all")  # type: ignore[arg-type]
