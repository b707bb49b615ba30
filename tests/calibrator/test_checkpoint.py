"""A walk that was killed goes on, and ends in the bits of one that was not."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import openwork as ow
from openwork.calibrator import Calibrated, Solution
from openwork.files import FileError
from openwork.layouts.rounded import RoundedInputLinear
from openwork.quantization import FloatGrid
from tests.calibrator.stages import Faulty, gpt, same, weights, windows

RECIPE = [ow.SparseGPT(sparsity=0.6), ow.BiasCorrect(add=True)]


def interrupted(model, folder, monkeypatch, block):
    """Run the recipe until it reaches ``block``, and stop there as a kill would."""

    class Killed(BaseException):
        pass

    inner = ow.SparseGPT.solve

    def solve(self, layer):
        if layer.name.startswith(f"blocks.{block}."):
            raise Killed
        return inner(self, layer)

    with monkeypatch.context() as patch:
        patch.setattr(ow.SparseGPT, "solve", solve)
        with pytest.raises(Killed):
            ow.sparsify_(model, RECIPE, data=windows(), checkpoint=folder)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_resuming_gives_the_same_bits(block, tmp_path, monkeypatch):
    straight = gpt()
    expected = ow.sparsify_(straight, RECIPE, data=windows())
    model = gpt()
    interrupted(model, tmp_path / "run", monkeypatch, block)
    assert same(weights(model), weights(gpt()))
    assert len(list((tmp_path / "run").iterdir())) == block
    resumed = gpt()
    found = ow.sparsify_(resumed, RECIPE, data=windows(), checkpoint=tmp_path / "run")
    assert same(weights(straight), weights(resumed))
    assert same(expected.masks, found.masks)
    assert [(a.layer, a.stage, a.kept, a.error) for a in found.lines] == [
        (a.layer, a.stage, a.kept, a.error) for a in expected.lines
    ]


def test_a_finished_run_is_taken_over_whole(tmp_path, monkeypatch):
    first, second = gpt(), gpt()
    ow.sparsify_(first, RECIPE, data=windows(), checkpoint=tmp_path)
    monkeypatch.setattr(ow.SparseGPT, "solve", None)
    ow.sparsify_(second, RECIPE, data=windows(), checkpoint=tmp_path)
    assert same(weights(first), weights(second))


def test_biases_that_were_added_come_back(tmp_path):
    torch.manual_seed(0)
    state = torch.nn.Sequential(torch.nn.Linear(5, 4, bias=False)).state_dict()
    outcomes = []
    for _ in range(2):
        model = torch.nn.Sequential(torch.nn.Linear(5, 4, bias=False))
        model.load_state_dict(state)
        data = [torch.ones(3, 5) + torch.arange(15.0).view(3, 5)]
        ow.sparsify_(model, [ow.Wanda(), ow.BiasCorrect(add=True)], data=data, checkpoint=tmp_path)
        outcomes.append(weights(model))
    assert outcomes[0]["0.bias"].any()
    assert same(*outcomes)


def test_what_comes_after_a_gap_is_done_again(tmp_path):
    first, second = gpt(), gpt()
    ow.sparsify_(first, RECIPE, data=windows(), checkpoint=tmp_path)
    (tmp_path / "block-0001.pt").unlink()
    ow.sparsify_(second, RECIPE, data=windows(), checkpoint=tmp_path)
    assert same(weights(first), weights(second))


def test_another_run_or_a_damaged_file_is_refused(tmp_path):
    ow.sparsify_(gpt(), RECIPE, data=windows(), checkpoint=tmp_path)
    others = [
        (gpt(), [ow.SparseGPT(sparsity=0.7)], windows(), {}),
        (gpt(seed=1), RECIPE, windows(), {}),
        (gpt(), RECIPE, windows(seed=1), {}),
        (gpt(), RECIPE, windows(), {"true_sequential": True}),
    ]
    for model, recipe, data, options in others:
        before = weights(model)
        with pytest.raises(FileError, match="another model, recipe or data"):
            ow.sparsify_(model, recipe, data=data, checkpoint=tmp_path, **options)
        assert same(before, weights(model))
    path = tmp_path / "block-0000.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FileError, match=r"block-0000.pt: no whole checkpoint"):
        ow.sparsify_(gpt(), RECIPE, data=windows(), checkpoint=tmp_path)


def test_other_masks_to_begin_with_are_another_run(tmp_path):
    ow.sparsify_(gpt(), [ow.Magnitude(sparsity=0.6), ow.ColumnSweep()], data=windows(), checkpoint=tmp_path)
    with pytest.raises(FileError, match="another model, recipe or data"):
        ow.sparsify_(
            gpt(), [ow.Magnitude(sparsity=0.7), ow.ColumnSweep()], data=windows(), checkpoint=tmp_path
        )


def test_an_error_leaves_what_was_done(tmp_path):
    with pytest.raises(RuntimeError):
        ow.sparsify_(gpt(), Faulty(at="blocks.2.mlp.up.weight"), data=windows(), checkpoint=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["block-0000.pt", "block-0001.pt"]


@dataclass(frozen=True, kw_only=True)
class Rounds(Calibrated):
    """Makes every layer round its inputs, as FP4 does after a long search."""

    name: ClassVar[str] = "rounds"
    reads_zeros: ClassVar[bool] = True

    def solve(self, layer):
        scale, shift = layer.statistics.maximum.max() / 6, torch.arange(layer.weight.shape[1]) % 3
        return Solution(
            layer.weight, module=lambda m: RoundedInputLinear.around(m, FloatGrid(2, 1), scale, shift)
        )


@pytest.mark.parametrize("last", [ow.LoRC(rank=3), Rounds()], ids=["low rank", "rounded inputs"])
def test_layers_of_another_kind_come_back(last, tmp_path):
    recipe = [ow.Wanda(), last]
    straight, resumed = gpt(), gpt()
    expected = ow.sparsify_(straight, recipe, data=windows(), checkpoint=tmp_path)
    (tmp_path / "block-0002.pt").unlink()
    found = ow.sparsify_(resumed, recipe, data=windows(), checkpoint=tmp_path)
    kinds = [type(straight.get_submodule(f"blocks.{i}.mlp.up")) for i in range(3)]
    assert kinds == [type(resumed.get_submodule(f"blocks.{i}.mlp.up")) for i in range(3)]
    assert torch.nn.Linear not in kinds
    assert same(straight.state_dict(), resumed.state_dict())
    assert same(expected.masks, found.masks)
    x = windows()[0]
    with torch.no_grad():
        assert torch.equal(straight.eval()(x), resumed.eval()(x))


def test_modules_that_a_file_of_tensors_cannot_hold_are_refused(tmp_path):
    class Odd(torch.nn.Linear):
        pass

    @dataclass(frozen=True, kw_only=True)
    class Replaces(Calibrated):
        name: ClassVar[str] = "replaces"
        reads_zeros: ClassVar[bool] = True

        def solve(self, layer):
            return Solution(layer.weight, module=lambda m: Odd(m.in_features, m.out_features))

    model = gpt()
    with pytest.raises(ValueError, match="belongs to a Odd now, and a checkpoint holds tensors only"):
        ow.sparsify_(model, Replaces(), data=windows(), checkpoint=tmp_path)
    assert same(weights(model), weights(gpt()))
