"""Rounding that is learned: where it begins, where it may go, and that it ends on the grid."""

import pytest
import torch

from openwork.quantization import FloatGrid, IntegerGrid, fit, nearest
from openwork.quantization.grouped import groups_of
from openwork.quantization.learned import LowRankRounding, StraightThrough, squeezed, unsqueezed
from openwork.quantization.truncation import largest_reserved, truncated

GRID = IntegerGrid(3)


def begun(cls: type, seed: int = 0, **more):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 19, generator=generator)
    mask = torch.rand(7, 19, generator=generator) < 0.7
    weight = weight * mask
    learned = cls(weight, GRID, fit(weight, GRID, 5), groups_of(19, 5), mask, **more)
    return learned, weight, mask


def low_rank(seed: int = 0):  # type: ignore[no-untyped-def]
    return begun(LowRankRounding, seed, rank=3, generator=torch.Generator().manual_seed(1))


def test_the_squeezed_sigmoid_reaches_both_ends_and_is_inverted() -> None:
    h = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.allclose(squeezed(unsqueezed(h)), h)
    assert squeezed(torch.tensor([-9.0, 9.0])).tolist() == [0, 1]


def test_low_rank_rounding_begins_as_the_weight_was_and_hardens_to_the_nearest() -> None:
    learned, weight, mask = low_rank()
    at = fit(weight, GRID, 5)
    inside = weight.clamp(
        (-at.zero * at.scale)[:, learned.group_of], ((7 - at.zero) * at.scale)[:, learned.group_of]
    )
    assert torch.allclose(learned(), inside, atol=1e-5)
    fraction = weight / at.scale[:, learned.group_of]
    assert torch.allclose(learned.rounding(), fraction - fraction.floor(), atol=1e-4)
    assert torch.allclose(learned.hardened().dense(), nearest(weight, GRID, 5).dense(), atol=1e-6)
    assert bool((learned.hardened().dense()[~mask] == 0).all())


def test_whatever_is_learned_moves_a_weight_up_or_down_by_one_step() -> None:
    learned, _, mask = low_rank()
    with torch.no_grad():
        for p in (learned.left, learned.right):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(4)) * 3)
    steps = learned.hardened().codes - (learned.floor + learned.spread_zero).clamp(0, 7)
    assert set(steps[mask].unique().tolist()) == {0.0, 1.0}
    assert bool((learned()[~mask] == 0).all())


def test_the_regulariser_is_zero_once_all_is_decided() -> None:
    learned, _, _ = low_rank()
    assert learned.undecided(2.0).item() > 0.1
    learned.offset.copy_(torch.where(learned.offset > 0, 9.0, -9.0))
    assert learned.undecided(2.0).item() == 0


def test_straight_through_is_rounding_forward_and_the_identity_backward() -> None:
    learned, weight, mask = begun(StraightThrough)
    assert torch.allclose(learned(), nearest(weight, GRID, 5).dense(), atol=1e-6)
    learned().sum().backward()
    real = weight / learned.scale.detach()[:, learned.group_of] + learned.spread_zero
    inside = mask & (real > 0) & (real < 7)
    assert torch.allclose(learned.weight.grad[inside], torch.ones(int(inside.sum())), atol=1e-5)
    assert bool((learned.weight.grad[~mask] == 0).all())
    assert bool((learned.scale.grad != 0).any())


@pytest.mark.parametrize("make", [low_rank, lambda: begun(StraightThrough)])
def test_hardened_weights_are_the_forward_pass_on_the_grid(make) -> None:  # type: ignore[no-untyped-def]
    learned, _, mask = make()
    q = learned.hardened()
    assert int(q.codes.max()) <= 7
    assert torch.allclose(learned.decoded(learned.hard_steps()), q.dense(), atol=1e-6)
    assert bool((q.dense()[~mask] == 0).all())


def test_other_grids_are_refused() -> None:
    w = torch.randn(2, 3)
    for grid in (FloatGrid(2, 1), IntegerGrid(4, zero="real")):
        with pytest.raises(ValueError, match="integer grids"):
            StraightThrough(w, grid, fit(w, grid), groups_of(3, "row"), w != 0)


def test_outliers_are_cut_at_the_widest_gap_above_the_rest() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    values[:3] = torch.tensor([20.0, -21.0, 22.0])
    most = largest_reserved(values)
    assert most == pytest.approx(float(values[3:].abs().max()))
    cut = truncated(values)
    assert float(cut.abs().max()) == pytest.approx(most)
    assert torch.equal(cut[3:], values[3:])
    assert largest_reserved(torch.tensor([1.0, 1.1, 0.9, 1.0, 1.2])) == pytest.approx(1.2)
    assert largest_reserved(torch.tensor([])) == 0


def test_the_split_is_the_best_of_all() -> None:
    v = (
        torch.randn(60, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        .pow(3)
        .abs()
        .sort()
        .values
    )
    q1, q3 = float(v[59 // 4]), float(v[3 * 59 // 4])
    coarse = [i for i in range(60) if v[i] > q3 + 1.5 * (q3 - q1)]
    merits = {i: float((v[i] - v[i - 1]) ** 2 - v[:i].var(correction=0)) for i in coarse}
    best = max(merits, key=merits.__getitem__)
    assert largest_reserved(v) == pytest.approx(float(v[best - 1]))
