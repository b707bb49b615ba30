"""SparseGPT, ADMM, ALPS, Refit and the column sweep as stages: exact counts, the order of their errors."""

import dataclasses

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

import openwork as ow
from openwork.calibrate import refit
from openwork.calibrate.admm import ADMM
from openwork.calibrate.alps import ALPS
from openwork.calibrate.column_sweep import ColumnSweep
from openwork.calibrate.refit import Refit
from openwork.calibrate.sparsegpt import SparseGPT
from openwork.calibrate.wanda import Wanda
from openwork.reconstruction.admm import Normalized, admm
from openwork.reconstruction.hessian import damped, layer_error
from openwork.testing import batches, network
from tests.calibrate.layers import given

FORMS = ["unstructured", "fan-in", "1:2", "3:11", "block 1x2", "block 13x1", "groups 1"]


@settings(max_examples=25, deadline=None)
@drawn(st.integers(0, 99), st.sampled_from(FORMS), st.floats(0, 0.97), st.integers(1, 30))
def test_sparsegpt_masks_are_legal_and_counts_exact(seed, form, sparsity, block):
    layer, _ = given(seed, form=form, sparsity=sparsity, dead=seed % 3)
    solution = SparseGPT(block=block).solve(layer)
    assert int(solution.mask.sum()) == layer.pattern.legal_kept(layer.shape, layer.kept)
    assert layer.pattern.allows(solution.mask)
    assert not solution.weight[~solution.mask].any()


@pytest.mark.parametrize("cls", [SparseGPT, ADMM, ALPS, Wanda])
@pytest.mark.parametrize("form", ["unstructured", "1:2", "fan-in"])
def test_convolutions_keep_exactly_what_is_asked(cls, form):
    """Kernel positions, groups of a convolution, and inputs that do not fill the last slice."""
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, (2, 3), groups=2), nn.Conv2d(4, 5, 1)
    )
    data = [torch.randn(2, 4, 7, 6)]
    found = ow.sparsify_(model, cls(sparsity=0.6, pattern=form), data=data)
    for row in found.plan.sparse:
        mask = found.masks[row.name]
        assert row.sparse
        assert int(mask.sum()) == row.kept
        assert not row.weight.parameter[~mask].any()
        assert row.pattern.allows(mask)


def test_whole_outputs_cannot_be_chosen_in_a_sweep():
    with pytest.raises(ValueError, match=r"cannot choose groups 0 of layer: prune with Wanda"):
        SparseGPT().solve(given(form="groups 0")[0])


def test_dead_inputs_are_dropped_first():
    layer, _ = given(1, dead=4, sparsity=0.5)
    for cls in (SparseGPT, Wanda, ADMM, ALPS):
        for scale in (1e-6, 1.0, 1e6):  # in whatever units the weights are
            solution = cls().solve(
                dataclasses.replace(layer, dense=layer.dense * scale, weight=layer.weight * scale)
            )
            assert not solution.weight[:, :4].any()


def test_for_one_mask_the_errors_are_ordered():
    """Exact refit <= converged ADMM and conjugate gradients <= the sweep's update <= no update, layer by layer."""
    for seed in range(6):
        layer, _ = given(seed, out=24, inputs=40, sparsity=0.6, form="fan-in")
        mask = Wanda().solve(layer).mask
        masked = dataclasses.replace(layer, mask=mask, weight=layer.dense * mask, kept=int(mask.sum()))

        def cost(weight, layer=layer):
            return float(layer_error(weight - layer.dense, damped(layer.statistics.gram, 0.01)))

        exact = cost(Refit(solver="exact").solve(masked).weight)
        gradient = cost(Refit(solver="gradient").solve(masked).weight)
        alternating = cost(admm(layer.dense, Normalized(layer.statistics.gram, 0.01), mask, steps=300)[0])
        sweep, none = cost(ColumnSweep().solve(masked).weight), cost(masked.weight)
        assert exact <= gradient * (1 + 1e-12)
        assert exact <= alternating * (1 + 1e-12)
        assert max(gradient, alternating) <= exact * (1 + 1e-4)
        assert exact < sweep < none


def test_choosing_while_mending_beats_choosing_first():
    """64 to 48 at 50 %: the sweep leaves much of the gain unused, and choosing while mending beats choosing first."""
    layer, _ = given(0, out=48, inputs=64, tokens=512, form="fan-in")
    mask = Wanda().solve(layer).mask
    masked = dataclasses.replace(layer, mask=mask, weight=layer.dense * mask)
    none, sweep, exact = (
        layer.error(s.weight)
        for s in (Wanda().solve(layer), ColumnSweep().solve(masked), Refit().solve(masked))
    )
    assert exact < 0.97 * sweep < none
    layer = dataclasses.replace(layer, pattern=ow.pattern("unstructured"))
    assert layer.error(ALPS().solve(layer).weight) <= layer.error(ADMM().solve(layer).weight) * 1.02 < exact


def test_refit_takes_the_solver_it_can_afford(monkeypatch):
    layer, _ = given(2, mask=torch.rand(13, 22, generator=torch.Generator().manual_seed(0)) < 0.5)
    exact = Refit().solve(layer).weight
    monkeypatch.setattr(refit, "SMALL", 1.0)
    torch.testing.assert_close(Refit().solve(layer).weight, exact, rtol=1e-4, atol=1e-6)
    assert not torch.equal(Refit().solve(layer).weight, exact)
    monkeypatch.setattr(refit, "conjugate_gradients", None)
    assert torch.equal(Refit(solver="exact").solve(layer).weight, exact)


def test_refit_of_a_full_mask_is_the_dense_layer():
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ow.sparsify_(model, Refit(), data=batches(2))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Refit(solver="newton"), "solver is"),
        (lambda: Refit(damping=-1), "damping"),
        (lambda: SparseGPT(block=0), "block at least 1"),
        (lambda: ADMM(gradual=30), "gradual <= iterations"),
        (lambda: ADMM(rho=0), "rho is above 0"),
        (lambda: ALPS(iterations=0), "iterations is at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
