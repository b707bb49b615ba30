"""AC/DC alternates as its calendar says, and both of its models exist."""

import dataclasses

import pytest
import torch

from openwork import ACDC, GMP
from openwork.testing import check_method
from tests.train.runs import Run

METHOD = ACDC(sparsity=0.8, steps=40)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"allocation": "uniform", "steps": 20},
        {"pattern": "1:3", "steps": 20},
        {"pattern": "block 3x1", "steps": 20},
    ],
)
def test_conformance(options):
    check_method(ACDC, **options)


def test_the_calendar_is_that_of_the_paper():
    imagenet = ACDC(steps=100).phases()
    assert [t for t, sparse in imagenet.items() if sparse] == [10, 20, 30, 40, 50, 60, 70, 85]
    assert [t for t, sparse in imagenet.items() if not sparse] == [15, 25, 35, 45, 55, 65, 75]
    cifar = ACDC(steps=200, warmup=0.05, sparse=0.1, dense=0.1).phases()
    assert [t for t, sparse in cifar.items() if sparse] == [10, 50, 90, 130, 170]
    assert [t for t, sparse in cifar.items() if not sparse] == [30, 70, 110, 150]


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("stored", [False, True])
def test_sparse_phases_have_the_target_and_dense_ones_everything(allocation, stored):
    method = dataclasses.replace(METHOD, allocation=allocation)
    run = Run(method, stored=stored)
    size, target = run.sparsifier.plan.numel, run.sparsifier.plan.kept
    assert target == round(0.2 * size)
    sparse, seen = False, []
    for t in range(1, 41):
        run.step()
        sparse = method.phases().get(t, sparse)
        seen.append(sparse)
        assert run.sparsifier.kept == (target if sparse else size)
    assert sparse
    assert len(set(seen)) == 2


def test_what_comes_back_starts_from_zero_without_momentum():
    run = Run(METHOD).step(5)
    assert METHOD.phases()[6] is False
    masks = run.sparsifier.masks
    run.step()
    for name, weight in run.weights.items():
        assert not weight[~masks[name]].any()
        assert weight[masks[name]].all()
    states = [run.optimizer.state[c.weight.parameter] for c in run.sparsifier.connections.values()]
    assert not any(s["momentum_buffer"].any() for s in states)
    kept = Run(dataclasses.replace(METHOD, reset_momentum=False)).step(6)
    for c in kept.sparsifier.connections.values():
        buffer = kept.optimizer.state[c.weight.parameter]["momentum_buffer"]
        assert torch.equal(buffer != 0, masks[c.name])


def test_the_mask_holds_the_largest_weights_of_all_layers():
    assert METHOD.phases()[4] is True
    run, plain = Run(METHOD).step(4), Run(ACDC(sparsity=0.0, steps=40)).step(4)
    everything = torch.cat([w.abs().flatten() for w in plain.weights.values()])
    threshold = everything.sort(descending=True).values[run.sparsifier.plan.kept - 1]
    for name, mask in run.sparsifier.masks.items():
        assert torch.equal(mask, plain.weights[name].abs() >= threshold)


def test_both_models_exist_and_share_the_mask():
    run = Run(METHOD).step(METHOD.last_compression)
    dense = METHOD.dense_weights(run.sparsifier)
    for name, weight in run.weights.items():
        mask = run.sparsifier.masks[name]
        assert dense[name].all()
        assert torch.equal(weight, torch.where(mask, dense[name], 0))
    at_compression = run.sparsifier.masks
    run.step(6)
    for name, mask in run.sparsifier.masks.items():
        assert torch.equal(mask, at_compression[name])
        assert torch.equal(METHOD.dense_weights(run.sparsifier)[name], dense[name])


def test_there_is_no_dense_model_before_the_end():
    run = Run(METHOD).step(2)
    with pytest.raises(ValueError, match=r"from step 34 on.* at step 2"):
        METHOD.dense_weights(run.sparsifier)


def test_without_sparsity_it_is_plain_training():
    assert (
        Run(ACDC(sparsity=0.0, steps=40)).step(40).losses == Run(GMP(sparsity=0.0, steps=40)).step(40).losses
    )


def test_one_phase_is_one_shot_pruning_and_fine_tuning():
    ((setting, simpler),) = METHOD.limits()
    assert isinstance(simpler, GMP)
    assert [t for t in range(1, 41) if simpler.due(t)] == [34] == list(setting.phases())
    a, b = Run(setting).step(40), Run(simpler).step(40)
    assert a.losses == b.losses
    assert a.sparsifier.kept == a.sparsifier.plan.kept


def test_impossible_phases():
    with pytest.raises(ValueError, match="last_sparse"):
        ACDC(last_sparse=1.5)
    with pytest.raises(ValueError, match="never end"):
        ACDC(sparse=0.0, dense=0.0)
