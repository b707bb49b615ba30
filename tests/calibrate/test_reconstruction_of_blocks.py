"""Straight-through training, CBQ and end-to-end scales: never worse, always on the grid, zeros kept."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import openwork as ow
from openwork.calibrate.cbq import CBQ
from openwork.calibrate.coarse_to_fine import CoarseToFine
from openwork.calibrate.gqsa import GQSA
from openwork.calibrate.straight_through import StraightThrough
from openwork.calibrator.scales import tune_scales_
from openwork.calibrator.windows import reconstruct_
from openwork.quantization import IntegerGrid
from openwork.tasks.gpt import gpt_small


def model(depth: int = 3) -> nn.Module:
    """A small transformer with weights large enough to matter."""
    small = gpt_small(width=16, depth=depth, heads=2, context=12)
    with torch.no_grad():
        for block in small.blocks:
            for p in block.parameters():
                p.mul_(8 if p.dim() > 1 else 1)
    return small


def data(batches: int = 3, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 65, (3, 12), generator=generator) for _ in range(batches)]


def hidden(small: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h = small.tokens(x) + small.positions.weight[: x.shape[-1]]
        for block in small.blocks:
            h = block(h)
        return h


def distance(small: nn.Module, reference: nn.Module) -> float:
    return float(sum((hidden(small, x) - hidden(reference, x)).square().sum() for x in data()))


def on_their_grids(small: nn.Module, found: ow.Calibration) -> None:
    for name, parts in found.parts.items():
        weight = small.get_parameter(name).detach()
        assert torch.equal(weight, torch.where(found.masks[name], parts["quantized"].dense(), 0))
        assert bool((weight[~found.masks[name]] == 0).all())


@pytest.mark.parametrize(
    "recipe",
    [
        [StraightThrough(grid="int3", group=8)],
        [ow.RTN(grid="int3", group=8), StraightThrough()],
        [ow.Wanda(pattern="2:4"), StraightThrough(grid="int4", group=8)],
        [GQSA(sparsity=0.3), StraightThrough()],
        [CBQ(grid="int3", group=8, epochs=2)],
        [ow.Magnitude(sparsity=0.4), CBQ(grid="int3", group=8, epochs=2, truncate=True)],
        [CoarseToFine(), CBQ(grid="int4-symmetric", epochs=1)],
    ],
    ids=lambda recipe: "+".join(stage.name for stage in recipe),
)
def test_recipes_end_on_their_grids_with_their_zeros(recipe) -> None:  # type: ignore[no-untyped-def]
    small = model(2)
    found = ow.sparsify_(small, recipe, data=data())
    assert len(found.parts) == 8
    on_their_grids(small, found)


def test_training_through_the_rounding_improves_on_rounding() -> None:
    rounded, trained, reference = model(2), model(2), model(2)
    stages = [ow.RTN(grid="int3", group=8)]
    ow.sparsify_(rounded, stages, data=data())
    ow.sparsify_(
        trained, [*stages, StraightThrough(epochs=6, learning_rate=0.05, scale_rate=0.01)], data=data()
    )
    assert distance(trained, reference) < 0.8 * distance(rounded, reference)


def test_no_training_is_rounding_to_nearest() -> None:
    rounded, same, other = model(2), model(2), model(2)
    ow.sparsify_(rounded, ow.RTN(grid="int3", group=8), data=data())
    ow.sparsify_(same, StraightThrough(grid="int3", group=8, epochs=0), data=data())
    ow.sparsify_(other, CBQ(grid="int3", group=8, epochs=0), data=data())
    for name, p in rounded.named_parameters():
        assert torch.equal(p, same.get_parameter(name))
        assert torch.equal(p, other.get_parameter(name))


def test_a_window_of_one_is_ordinary_block_reconstruction() -> None:
    stage = CBQ(grid="int3", group=8, epochs=2, window=1, overlap=0)
    as_stage, as_window = model(2), model(2)
    ow.sparsify_(as_stage, stage, data=data())
    found = reconstruct_(as_window, stage, data=data(), homologous=False)
    for name, p in as_stage.named_parameters():
        assert torch.equal(p, as_window.get_parameter(name))
    assert [line.layer for line in found.lines] == ["blocks.0", "blocks.1"]


def test_windows_overlap_and_cover_every_block() -> None:
    small = model(4)
    found = reconstruct_(small, CBQ(grid="int3", group=8, epochs=1, window=2, overlap=1), data=data(2))
    titles = [line.layer for line in found.lines]
    assert titles == ["blocks.0 + blocks.1", "blocks.1 + blocks.2", "blocks.2 + blocks.3"]
    assert len(found.parts) == 16
    on_their_grids(small, found)
    uneven = reconstruct_(model(4), CBQ(epochs=0, window=3, overlap=0), data=data(1))
    assert [line.layer for line in uneven.lines] == ["blocks.0 + blocks.1 + blocks.2", "blocks.3"]


def test_windows_come_nearer_than_rounding_and_never_end_worse() -> None:
    rounded, tuned, reference = model(), model(), model()
    ow.sparsify_(rounded, ow.RTN(grid="int3", group=8), data=data())
    reconstruct_(tuned, CBQ(grid="int3", group=8, epochs=4, divergence=0.0), data=data())
    assert distance(tuned, reference) < distance(rounded, reference)


def test_a_pruned_model_is_reconstructed_towards_the_dense_one() -> None:
    small, reference = model(2), model(2)
    masks = ow.sparsify_(small, ow.Magnitude(sparsity=0.4, exclude=("head*", "tokens*", "positions*"))).masks
    found = reconstruct_(small, CBQ(epochs=2), data=data(), reference=reference)
    for name, mask in masks.items():
        assert bool((small.get_parameter(name)[~mask] == 0).all())
    on_their_grids(small, found)


def test_an_error_on_the_way_leaves_the_model_as_it_was() -> None:
    class Broken(CBQ):
        def tune(self, window, sides, purpose):  # type: ignore[no-untyped-def]
            if purpose.startswith("blocks.1"):
                raise RuntimeError("no more power")
            return super().tune(window, sides, purpose)

    small = model()
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(RuntimeError, match="no more power"):
        reconstruct_(small, Broken(epochs=1), data=data())
    assert all(torch.equal(p, before[name]) for name, p in small.state_dict().items())


def test_windows_that_do_not_move_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap is 0 to 1"):
        CBQ(window=2, overlap=2)
    with pytest.raises(ValueError, match="integer grids"):
        ow.sparsify_(model(2), CBQ(grid="e2m1"), data=data())


# --- scales from end to end


def pairs() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x[:, :-1], x[:, 1:]) for x in data(6, seed=3)]


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize(
    "recipe",
    [
        [GQSA(sparsity=0.3)],
        [ow.Wanda(), ow.GPTQ(grid=IntegerGrid(3, scales="float16"), group=8)],
        [ow.SpQR(group=8)],
    ],
)
def test_scales_are_tuned_and_codes_stay(recipe) -> None:  # type: ignore[no-untyped-def]
    small = model(2)
    found = ow.sparsify_(small, recipe, data=data())
    with torch.no_grad():
        before = float(sum(loss(small(x), y) for x, y in pairs()))
    zeros = {name: small.get_parameter(name) == 0 for name in found.parts}
    tuned = tune_scales_(small, found, data=pairs(), loss=loss, epochs=3, learning_rate=3e-3)
    assert all(p.grad is None for p in small.parameters())
    with torch.no_grad():
        after = float(sum(loss(small(x), y) for x, y in pairs()))
    assert after < before
    for name, parts in tuned.parts.items():
        old, new = found.parts[name]["quantized"], parts["quantized"]
        assert torch.equal(old.codes, new.codes)
        assert torch.equal(old.at.zero, new.at.zero)
        assert not torch.equal(old.at.scale, new.at.scale)
        assert torch.equal(small.get_parameter(name) == 0, zeros[name])
    if not isinstance(recipe[0], ow.SpQR):
        on_their_grids(small, dataclasses.replace(found, parts=tuned.parts))


def test_codes_of_another_model_are_refused() -> None:
    small = model(2)
    found = ow.sparsify_(small, ow.RTN(), data=data())
    with torch.no_grad():
        small.blocks[1].mlp.up.weight += 0.1  # type: ignore[index]
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.up\.weight are not those of its codes"):
        tune_scales_(small, found, data=pairs(), loss=loss)
    with pytest.raises(ValueError, match="a quantiser among its stages"):
        tune_scales_(small, ow.sparsify_(model(2), ow.Wanda(), data=data()), data=pairs(), loss=loss)


@pytest.mark.parametrize(
    "recipe", [[ow.Wanda(), ow.SpQR(group=8)], [GQSA(sparsity=0.3), StraightThrough(epochs=1)]], ids=len
)
def test_a_recipe_with_codes_goes_on_where_it_was_interrupted(recipe, tmp_path) -> None:  # type: ignore[no-untyped-def]
    straight, resumed = model(2), model(2)
    first = ow.sparsify_(straight, recipe, data=data(2), checkpoint=tmp_path)
    (tmp_path / "block-0001.pt").unlink()
    again = ow.sparsify_(resumed, recipe, data=data(2), checkpoint=tmp_path)
    for name, p in straight.named_parameters():
        assert torch.equal(p, resumed.get_parameter(name))
    for name, parts in first.parts.items():
        assert torch.equal(parts["quantized"].codes, again.parts[name]["quantized"].codes)
