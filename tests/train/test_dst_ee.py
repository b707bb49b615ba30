"""DST-EE: the upper confidence bound, and RigL without it."""

import dataclasses
import math

import pytest
import torch

from openwork import DSTEE, RigL
from openwork.exploration import explored, unexplored
from openwork.growth import Gradient
from openwork.patterns import Unstructured
from openwork.testing import check_method
from openwork.train.dst_ee import Curious
from tests.train.runs import Run

METHOD = DSTEE(sparsity=0.8, steps=20, every=2, c=0.01)


class Site:
    """Connections with a gradient that is given, in tiles."""

    device = torch.device("cpu")

    def __init__(self, gradient, tile=7):
        self.gradient, self.tile = gradient, tile
        self.grid = Unstructured().grid(tuple(gradient.shape))

    def gradient_tiles(self):
        for first in range(0, self.gradient.numel(), self.tile):
            yield first, self.gradient[first : first + self.tile]


@pytest.fixture
def site():
    return Site(torch.rand(40, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def record():
    tried = unexplored(torch.device("cpu"))
    for topology in ([0, 3, 8], [3, 8, 21], [3, 39]):
        tried = explored(tried, torch.tensor(topology))
    return tried


def places(site, rule, taken, count):
    taken = torch.tensor(taken, dtype=torch.int64)
    return rule.places(site, taken, torch.tensor([count]), torch.Generator()).tolist()


def test_conformance():
    check_method(DSTEE, c=0.05)


def test_the_score_is_the_formula(site, record):
    rule = Curious(Gradient(), record, bonus=0.3, eps=0.5, relative=False)
    scores = torch.cat([scores for _, scores in rule.tiles(site)])
    times = {0: 1, 3: 3, 8: 2, 21: 1, 39: 1}
    for i, score in enumerate(scores.tolist()):
        assert score == pytest.approx(site.gradient[i].item() + 0.3 / (times.get(i, 0) + 0.5))


def test_a_huge_bonus_takes_the_least_tried_by_gradient(site, record):
    rule = Curious(Gradient(), record, bonus=1e6, eps=1.0, relative=False)
    never = [i for i in range(40) if i not in (0, 3, 8, 21, 39)]
    by_gradient = sorted(never, key=lambda i: -site.gradient[i].item())
    assert places(site, rule, [], 10) == sorted(by_gradient[:10])
    assert places(site, rule, never, 3) == [0, 21, 39]
    assert places(site, rule, never, 4) == [0, 8, 21, 39]


def test_a_relative_bonus_does_not_depend_on_the_scale_of_gradients(site):
    record = explored(unexplored(torch.device("cpu")), torch.arange(0, 40, 2))
    rule = Curious(Gradient(), record, bonus=0.2, eps=1.0, relative=True)
    small = Site(site.gradient / 1024)
    assert places(site, rule, [3, 5], 12) == places(small, rule, [3, 5], 12)
    fixed = dataclasses.replace(rule, relative=False)
    assert places(site, fixed, [3, 5], 12) != places(small, fixed, [3, 5], 12)


def test_counters_hold_every_topology_and_coverage_grows():
    run = Run(METHOD)
    covered = 0.0
    for _ in range(20):
        run.step()
        for c in run.sparsifier.connections.values():
            record = run.sparsifier.state[f"explored {c.name}"]
            assert int(record[1].sum()) == (run.sparsifier.updates + 1) * c.kept
        assert METHOD.measures(run.sparsifier)["explored"] >= covered
        covered = METHOD.measures(run.sparsifier)["explored"]


def test_curiosity_explores_more_and_none_is_rigl():
    plain = Run(METHOD.reduced_to(RigL)).step(20)
    assert Run(dataclasses.replace(METHOD, c=0.0)).step(20).losses == plain.losses
    rates = [
        dataclasses.replace(METHOD, c=c).measures(Run(dataclasses.replace(METHOD, c=c)).step(20).sparsifier)[
            "explored"
        ]
        for c in (0.0, 1.0)
    ]
    assert rates[1] > rates[0]


def test_stored_and_masked_agree():
    assert Run(METHOD, stored=True).step(20).losses == pytest.approx(Run(METHOD).step(20).losses, rel=1e-9)


def test_the_bonus_grows_with_the_logarithm_of_the_step():
    run = Run(METHOD)
    c = next(iter(run.sparsifier.connections.values()))
    assert METHOD.growth_in(c, run.sparsifier, 7).bonus == pytest.approx(0.01 * math.log(7))


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="grow='gradient'"):
        DSTEE(grow="random")
    with pytest.raises(ValueError, match="eps"):
        DSTEE(eps=0.0)
