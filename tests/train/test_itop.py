"""ITOP: RigL on another schedule, and the measure of what was tried."""

import dataclasses

import pytest
import torch

from openwork import ITOP, RigL, attach
from openwork.testing import check_method
from tests.train.runs import Run, net

METHOD = ITOP(sparsity=0.8, steps=20, every=2)


def test_conformance():
    check_method(ITOP, min_age=2)


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_the_rate_is_the_union_of_all_masks(grow):
    run = Run(dataclasses.replace(METHOD, grow=grow))
    size = sum(w.numel() for w in run.weights.values())
    union, before = dict(run.sparsifier.masks), 0.0
    assert METHOD.measures(run.sparsifier)["explored"] == pytest.approx(run.sparsifier.kept / size)
    for _ in range(20):
        run.step()
        union = {name: union[name] | mask for name, mask in run.sparsifier.masks.items()}
        measured = METHOD.measures(run.sparsifier)
        assert measured["explored"] == pytest.approx(sum(int(u.sum()) for u in union.values()) / size)
        for name, tried in union.items():
            assert measured[f"explored of {name}"] == pytest.approx(tried.double().mean().item())
        assert measured["explored"] >= before
        before = measured["explored"]
    assert before > run.sparsifier.kept / size
    assert f"explored: {before:.4f}" in run.sparsifier.summary()


def test_a_fixed_mask_explores_its_density():
    run = Run(dataclasses.replace(METHOD, drop=0.0)).step(20)
    assert METHOD.measures(run.sparsifier)["explored"] == pytest.approx(1 - run.sparsifier.sparsity)


def test_random_growth_follows_the_closed_form():
    d, zeta, k = 0.1, 0.3, 12
    method = ITOP(sparsity=1 - d, steps=k + 1, every=1, drop=zeta, grow="random", allocation="uniform")
    model = net((120, 90))
    sparsifier = attach(model, None, method)
    for _ in range(k):
        with torch.no_grad():  # so that every connection is equally likely to be dropped
            model[0].weight.copy_(
                torch.rand(90, 120, generator=torch.Generator().manual_seed(sparsifier.step_count))
            )
        sparsifier.step()
    expected = 1 - (1 - d) * (1 - zeta * d / (1 - d + zeta * d)) ** k
    assert method.measures(sparsifier)["explored"] == pytest.approx(expected, abs=0.01)


def test_a_minimum_age_counts_less():
    run = Run(METHOD).step(20)
    by_age = [
        dataclasses.replace(METHOD, min_age=age).measures(run.sparsifier)["explored"] for age in (1, 2, 5, 11)
    ]
    assert by_age == sorted(by_age, reverse=True)
    assert by_age[0] > by_age[-1]
    with pytest.raises(ValueError, match="min_age"):
        ITOP(min_age=0)


def test_it_trains_as_rigl_does_masked_and_stored():
    same = METHOD.reduced_to(RigL)
    assert Run(METHOD).step(20).losses == Run(same).step(20).losses
    stored = Run(METHOD, stored=True).step(20)
    assert stored.losses == pytest.approx(Run(METHOD).step(20).losses, rel=1e-9)
    assert METHOD.measures(stored.sparsifier) == METHOD.measures(Run(METHOD).step(20).sparsifier)
