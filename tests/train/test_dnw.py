"""DNW wires the strongest of weights that are all trained."""

import pytest
import torch

from openwork import DNW
from openwork.testing import check_method
from tests.train.runs import Run, net

METHOD = DNW(sparsity=0.8)


@pytest.mark.parametrize("options", [{}, {"every": 1}, {"pattern": "1:3"}, {"pattern": "block 3x1"}])
def test_conformance(options):
    check_method(DNW, **options)


def test_it_starts_from_the_strongest_and_its_counts_never_change():
    run = Run(METHOD)
    counts = [row.kept for row in run.sparsifier.plan.sparse]
    for i, kept in zip((0, 2, 4), counts, strict=True):
        w = net()[i].weight.detach().abs()
        assert torch.equal(
            run.sparsifier.masks[f"{i}.weight"], w >= w.flatten().sort(descending=True).values[kept - 1]
        )
    seen = []
    for _ in range(6):
        run.step()
        assert run.counts == counts
        seen.append(run.sparsifier.masks["2.weight"])
    assert any(not torch.equal(mask, seen[0]) for mask in seen)


def test_a_pruned_weight_that_is_pulled_comes_in():
    run = Run(METHOD, momentum=0.0)
    c = run.sparsifier.connections["0.weight"]
    place = tuple((~c.mask).nonzero()[0].tolist())
    for p in run.model.parameters():
        p.grad = torch.zeros_like(p)
    c.weight.parameter.grad[place] = -1000.0
    run.optimizer.step()
    assert c.mask[place]
    assert run.weights["0.weight"][place] == c.latent[place] > 99


def test_without_sparsity_it_is_plain_training():
    run, model = Run(DNW(sparsity=0.0)).step(5), net()
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(5):
        g = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(16, 13, generator=g, dtype=torch.float64)
        y = torch.randint(5, (16,), generator=g)
        plain.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        plain.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), run.model.parameters(), strict=True))
