"""Round to nearest, GPTQ and SpQR, each against its formula on odd, correlated problems in float64."""

import dataclasses
import math

import pytest
import torch

from openwork.calibrate.gptq import GPTQ
from openwork.calibrate.rtn import RTN
from openwork.calibrate.sparsegpt import SparseGPT
from openwork.calibrate.spqr import SpQR, bits_per_weight
from openwork.calibrator.layer import Layer
from openwork.calibrator.quantizing import Quantizing
from openwork.layouts.csr import CSR
from openwork.patterns import pattern
from openwork.quantization import IntegerGrid, Quantized, fit, grid, nearest
from openwork.quantization.codes import pack
from openwork.quantization.outliers import left_out_gain
from openwork.reconstruction.hessian import damped
from tests.calibrate.problems import inputs, layer, output_error

STAGES = [
    RTN(group=8),
    RTN(grid="e2m1", group="row"),
    RTN(grid="int8", group="tensor"),
    GPTQ(group=8),
    GPTQ(group=5, act_order=True),
    GPTQ(group=8, act_order=True, static_groups=True),
    GPTQ(group="row", block=4),
    GPTQ(grid="int4-symmetric", group="tensor"),
    GPTQ(grid="e2m1", group=8, joint=False),
    SpQR(group=8),
    SpQR(group=8, threshold=math.inf, stat_bits=None),
]


def quantized(stage: Quantizing, held: Layer) -> Quantized:
    found = stage.solve(held).parts["quantized"]
    assert isinstance(found, Quantized)
    return found


@pytest.mark.parametrize("stage", STAGES, ids=repr)
@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_weights_are_the_decoded_codes_and_zeros_stay_exact(stage: Quantizing, sparsity: float) -> None:
    held, _ = layer(sparsity=sparsity, seed=3)
    before = held.weight.clone(), held.dense.clone(), held.statistics.gram.clone()
    solution = stage.solve(held)
    q = solution.parts["quantized"]
    assert bool((solution.weight[~held.mask] == 0).all())
    decoded = q.grid.decode(q.codes, q.placement()).to(torch.float64)
    if isinstance(stage, SpQR):
        decoded = decoded + solution.parts["outliers"].dense()
    assert torch.equal(solution.weight, decoded)
    assert int(q.codes.max()) < 2**q.grid.bits
    assert torch.equal(before[0], held.weight)
    assert torch.equal(before[1], held.dense)
    assert torch.equal(before[2], held.statistics.gram)


@pytest.mark.parametrize(
    "stage", [GPTQ(group=8), GPTQ(group="row", act_order=True), GPTQ(grid="e2m1", group=23)], ids=repr
)
def test_a_diagonal_hessian_leaves_nothing_to_make_up_for(stage: GPTQ) -> None:
    x = torch.diag(torch.randn(23, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    held, _ = layer(x=x, seed=5)
    at_hand = dataclasses.replace(held, weight=held.dense, mask=torch.ones_like(held.mask))
    rounded = RTN(grid=stage.grid, group=stage.group).solve(at_hand).weight
    assert torch.equal(stage.solve(at_hand).weight, rounded)


def reference(held: Layer, levels: IntegerGrid, group: int, damping: float) -> tuple[torch.Tensor, float]:
    """GPTQ as the theory has it: after every column, the optimal change of all later ones, by an explicit inverse."""
    w, h = held.dense.clone(), damped(held.statistics.gram, damping)
    loss = 0.0
    n = w.shape[1]
    for j in range(n):
        if j % group == 0:
            at = levels.fit(torch.where(held.mask[:, j : j + group], w[:, j : j + group], 0))
        inverse = h[j:, j:].inverse()
        settled = torch.where(held.mask[:, j], w[:, j], 0)
        settled = levels.decode(levels.encode(settled, at), at)
        error = w[:, j] - settled
        w[:, j:] -= torch.outer(error / inverse[0, 0], inverse[0])
        w[:, j] = settled
        loss += float((error.square() / inverse[0, 0]).sum())
    return w, loss


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize(("group", "block"), [(8, 4), (5, 128), (23, 7)])
def test_gptq_is_optimal_brain_surgery_column_by_column(sparsity: float, group: int, block: int) -> None:
    held, _ = layer(sparsity=sparsity, seed=7)
    levels = IntegerGrid(3)
    expected, loss = reference(held, levels, group, 0.01)
    found = GPTQ(grid=levels, group=group, block=block).solve(held).weight
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7)
    change = found - held.dense
    identity = float(((change @ damped(held.statistics.gram, 0.01)) * change).sum())
    assert identity == pytest.approx(loss, rel=1e-5)


def test_gptq_errs_less_than_rounding() -> None:
    ratios = []
    for seed in range(4):
        held, x = layer(24, 48, tokens=300, seed=seed)
        rounded, compensated = (
            output_error(held, stage.solve(held).weight, x)
            for stage in (RTN(grid="int3", group=16), GPTQ(grid="int3", group=16))
        )
        ratios.append(compensated / rounded)
    assert max(ratios) < 0.8


def test_removing_and_rounding_in_one_sweep_beats_rounding_afterwards() -> None:
    for seed in range(3):
        held, x = layer(24, 48, tokens=300, seed=seed, sparsity=0.5)
        together = output_error(held, GPTQ(group=16).solve(held).weight, x)
        after = output_error(held, GPTQ(group=16, joint=False).solve(held).weight, x)
        assert together < 0.9 * after


def test_static_groups_are_those_of_the_weight_in_its_own_order() -> None:
    held, _ = layer(seed=2)
    q = quantized(GPTQ(group=8, act_order=True, static_groups=True), held)
    assert torch.equal(q.group_of, torch.arange(23) // 8)
    at = fit(held.dense, grid("int4"), 8)
    assert torch.allclose(q.at.scale.double(), at.scale)


def test_groups_under_act_order_are_runs_of_the_order_in_which_columns_were_taken() -> None:
    held, _ = layer(seed=2)
    q = quantized(GPTQ(group=8, act_order=True), held)
    order = held.statistics.gram.diagonal().argsort(descending=True)
    assert torch.equal(q.group_of[order], torch.arange(23) // 8)


def test_eight_bits_are_nearly_the_weights() -> None:
    held, _ = layer(seed=4)
    found = GPTQ(grid="int8", group=4).solve(held)
    assert held.error(found.weight) < 1e-4


def test_a_grid_without_zero_refuses_pruned_weights() -> None:
    held, _ = layer(sparsity=0.5)
    levels = IntegerGrid(4, zero="real")
    with pytest.raises(ValueError, match=r"fc\.weight has pruned weights"):
        RTN(grid=levels, group=8).solve(held)
    dense, _ = layer()
    assert torch.allclose(
        RTN(grid=levels, group=8).solve(dense).weight, nearest(dense.weight, levels, 8).dense()
    )


def test_unknown_grids_and_groups_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="int4-symmetric"):
        RTN(grid="nf4")
    with pytest.raises(ValueError, match="at least one input"):
        GPTQ(group=0)
    with pytest.raises(ValueError, match="group is a number"):
        SpQR(group="row")


# --- SpQR


def test_spqr_without_outliers_and_second_level_is_gptq() -> None:
    held, _ = layer(seed=6, sparsity=0.3)
    plain = GPTQ(grid="int3", group=8, act_order=True, damping=1.0).solve(held).weight
    assert torch.equal(SpQR(group=8, threshold=math.inf, stat_bits=None).solve(held).weight, plain)


def test_outliers_become_fewer_as_the_threshold_rises() -> None:
    held, x = layer(40, 64, tokens=300, seed=8)
    held.dense[3, 5], held.dense[20, 40] = 30.0, -25.0
    held = dataclasses.replace(held, weight=held.dense)
    found = [SpQR(threshold=t).solve(held) for t in (0.02, 0.1, 0.5, 2.0, math.inf)]
    counts = [s.parts["outliers"].topology.kept for s in found]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > 0 == counts[-1]
    errors = [output_error(held, s.weight, x) for s in found]
    assert errors[0] < errors[2] < errors[-1]


def test_planted_outliers_are_kept_as_sixteen_bits_hold_them() -> None:
    held, _ = layer(40, 64, tokens=300, seed=8)
    held.dense[3, 5], held.dense[20, 40] = 30.0, -25.0
    held = dataclasses.replace(held, weight=held.dense)
    solution = SpQR(threshold=2.0).solve(held)
    outliers = solution.parts["outliers"]
    assert isinstance(outliers.topology, CSR)
    assert bool(outliers.topology.mask()[3, 5])
    assert bool(outliers.topology.mask()[20, 40])
    assert torch.equal(outliers.values, outliers.values.half().double())
    mask = outliers.topology.mask()
    assert torch.equal(solution.weight[mask], outliers.values)
    assert bool((solution.parts["quantized"].dense()[mask] == 0).all())


def test_leaving_one_out_is_what_it_says() -> None:
    weights = layer(6, 9, seed=1)[0].dense
    weights[2, 4] = 12.0
    pivots = torch.rand(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    levels = IntegerGrid(3)

    def cost(row: torch.Tensor, pivot: torch.Tensor) -> float:
        return float(((row - nearest(row[None], levels).dense()[0]) / pivot).square().sum())

    gain = left_out_gain(weights, levels, pivots)
    for r in range(6):
        for k in range(9):
            rest = [j for j in range(9) if j != k]
            expected = cost(weights[r], pivots) - cost(weights[r, rest], pivots[rest])
            assert float(gain[r, k]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert int(gain[2].argmax()) == 4


def test_bits_follow_the_formula() -> None:
    held, _ = layer(64, 96, x=inputs(200, 96, 4), seed=4)
    solution = SpQR(threshold=0.3, group=16, stat_rows=16).solve(held)
    fraction = solution.parts["outliers"].topology.kept / (64 * 96)
    pointers = 32 * 65 / (64 * 96)
    expected = 3 + 2 * 3 / 16 + 2 * 2 * 16 / (16 * 16) + 32 * fraction + pointers
    found = bits_per_weight(solution.parts)
    assert found == pytest.approx(expected, rel=0.01)
    q = solution.parts["quantized"]
    assert pack(q.codes, 3).numel() * 8 / q.codes.numel() == 3


def test_spqr_beats_gptq_of_the_same_size_where_weights_have_outliers() -> None:
    held, x = layer(64, 96, x=inputs(400, 96, 9), seed=9)
    far = torch.rand(held.dense.shape, generator=torch.Generator().manual_seed(2)) < 0.005
    held.dense[far] *= 8
    held = dataclasses.replace(held, weight=held.dense)
    rival = GPTQ(grid=IntegerGrid(3, scales="float16"), group=16, act_order=True)
    plain = rival.solve(held)
    solution = SpQR(threshold=0.6, damping=rival.damping).solve(held)
    assert bits_per_weight(solution.parts) < plain.parts["quantized"].bits_per_weight
    assert output_error(held, solution.weight, x) < 0.8 * output_error(held, plain.weight, x)


@pytest.mark.parametrize("group", [4, "row"])
@pytest.mark.parametrize("form", ["unstructured", "2:4", "fan-in"])
def test_sparsegpt_chooses_and_rounds_in_one_sweep(form: str, group: int | str) -> None:
    held, _ = layer(out=9, features=24, seed=2)
    held = dataclasses.replace(
        held, weight=held.dense, mask=torch.ones_like(held.mask), pattern=pattern(form), kept=9 * 12
    )
    stage = SparseGPT(grid="int4", group=group)  # type: ignore[arg-type]
    solution = stage.solve(held)
    assert solution.mask is not None
    q = solution.parts["quantized"]
    assert torch.equal(solution.weight, torch.where(solution.mask, q.dense().double(), 0))
    assert held.pattern.allows(solution.mask)
    assert int(solution.mask.sum()) == 9 * 12


def test_pruning_and_rounding_in_one_sweep_lose_less_than_one_after_the_other() -> None:
    joint, apart = 0.0, 0.0
    for seed in range(8):
        held, x = layer(out=19, features=24, seed=seed)
        held = dataclasses.replace(held, weight=held.dense, mask=torch.ones_like(held.mask), kept=19 * 12)
        joint += output_error(held, SparseGPT(grid="int3", group=8).solve(held).weight, x)
        pruned = SparseGPT().solve(held)
        assert pruned.mask is not None
        after = RTN(grid="int3", group=8).solve(
            dataclasses.replace(held, weight=pruned.weight, mask=pruned.mask)
        )
        apart += output_error(held, after.weight, x)
    assert joint < apart


def test_sparsegpt_with_a_fixed_mask_rounds_as_gptq_does() -> None:
    held, _ = layer(out=7, features=20, sparsity=0.5, seed=4)
    stage = SparseGPT(grid="int4", group=5)
    joint = stage.solve(held)
    gptq = GPTQ(grid="int4", group=5).solve(held)
    assert torch.equal(joint.weight, gptq.weight)
    assert torch.equal(joint.mask, held.mask)  # type: ignore[arg-type]


def test_sparsegpt_refuses_grids_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="no level there"):
        SparseGPT(grid=IntegerGrid(4, zero="real"))
    with pytest.raises(ValueError, match="whole tensor"):
        SparseGPT(group="tensor")
