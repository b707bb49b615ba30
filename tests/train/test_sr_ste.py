"""SR-STE learns N:M masks that settle."""

import dataclasses

import pytest
import torch

from openwork import DNW, NM, SRSTE
from openwork.testing import check_method
from tests.train.runs import Run, net

METHOD = SRSTE(pattern="1:4")


def model(seed=0):
    return net((12, 32, 16, 5), seed)


@pytest.mark.parametrize("options", [{}, {"pattern": "1:3", "every": 1}, {"pattern": "unstructured"}])
def test_conformance(options):
    check_method(SRSTE, **options)


def test_every_group_has_exactly_n():
    run = Run(METHOD, model())
    for _ in range(5):
        run.step()
        for mask in run.sparsifier.masks.values():
            assert (mask.unflatten(1, (-1, 4)).sum(-1) == 1).all()
            assert NM(1, 4).allows(mask)


def test_the_gradient_of_pruned_weights_has_the_decay_added():
    plain, refined = (Run(dataclasses.replace(METHOD, decay=d), model(), momentum=0.0) for d in (0.0, 0.3))
    for run in (plain, refined):
        run.backward()
    theta = {n: c.latent.clone() for n, c in plain.sparsifier.connections.items()}
    mask = plain.sparsifier.masks
    for run in (plain, refined):
        run.optimizer.step()
    for name, c in refined.sparsifier.connections.items():
        expected = plain.sparsifier.connections[name].weight.parameter.grad + 0.3 * theta[name].masked_fill(
            mask[name], 0
        )
        torch.testing.assert_close(c.weight.parameter.grad, expected, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(c.latent, theta[name] - 0.1 * expected)


def test_without_decay_it_is_the_plain_estimator():
    ((setting, simpler),) = METHOD.limits()
    assert type(simpler) is DNW
    assert Run(setting, model()).step(6).losses == Run(simpler, model()).step(6).losses


def test_keeping_all_of_each_group_is_dense_training():
    dense = Run(DNW(sparsity=0.0), model()).step(6)
    assert Run(SRSTE(pattern="4:4", decay=0.5), model()).step(6).losses == dense.losses


def churn(decay):
    run, changes = Run(dataclasses.replace(METHOD, decay=decay), model(), lr=0.3), 0
    for _ in range(40):
        masks = run.sparsifier.masks
        run.step()
        changes += sum(int((mask ^ masks[n]).sum()) for n, mask in run.sparsifier.masks.items())
    return changes


def test_masks_settle_when_pruned_weights_are_pulled_to_zero():
    calm, restless = churn(0.2), churn(0.0)
    assert calm < 0.5 * restless


def test_decay_does_not_push():
    with pytest.raises(ValueError, match="decay"):
        SRSTE(decay=-1e-4)
