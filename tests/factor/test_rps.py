"""Parameter sharing: balanced use, exact gradients, and the model itself without compression."""

import pytest
import torch
from torch import nn

from openwork import GMP, RPS, StaticRandom, attach, restructure_
from openwork.layouts.shared import SharedLinear, hashed, places, signs
from openwork.tasks.digits import digits
from openwork.tasks.mlp import mlp
from openwork.tasks.training import fit


def net():
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 14), nn.Tanh(), nn.Linear(14, 5)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    return model


TOTAL = 9 * 14 + 14 * 5
X = torch.randn(7, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_without_compression_it_is_the_model():
    model, shared = net(), net()
    done = restructure_(shared, RPS(compression=1.0))
    assert torch.allclose(shared(X), model(X), rtol=1e-12)
    assert done.after == TOTAL
    assert max(row.error for row in done.rows) == 0.0


@pytest.mark.parametrize("cells", [1, 7, 50, 195])
def test_stable_sharing_uses_cells_equally_often(cells):
    counts = torch.bincount(places(torch.arange(TOTAL), cells, "stable", 3), minlength=cells)
    assert counts.min() >= TOTAL // cells
    assert counts.max() <= -(-TOTAL // cells)


def test_rows_of_roast_are_read_in_one_go():
    where = places(torch.arange(40 * 100), 512, "roast", 0, inputs=100).view(40, 100)
    steps = (where[:, 1:] - where[:, :-1]) % 512
    inside = torch.arange(1, 100) % 32 != 0
    assert bool((steps[:, inside] == 1).all())
    assert float((steps[:, ~inside] == 1).double().mean()) < 0.05


def test_hashes_are_fixed_even_and_independent():
    numbers = hashed(torch.arange(100_000), 5, 10)
    assert hashed(torch.arange(4), 5, 1000).tolist() == hashed(torch.arange(4), 5, 1000).tolist()
    assert bool((torch.bincount(numbers, minlength=10) - 10_000).abs().max() < 400)
    assert float((numbers == hashed(torch.arange(100_000), 6, 10)).double().mean()) == pytest.approx(
        0.1, abs=0.01
    )
    assert float(signs(torch.arange(100_000), "hashed", 0).double().mean()) == pytest.approx(0.0, abs=0.02)


def test_the_hash_never_changes():
    """Files hold the memory alone: another hash would read other weights from it. This is SplitMix64 in Python's integers."""
    numbers = [0, 1, 2, 10**12]
    for seed in (0, 7):
        expected = []
        for n in numbers:
            z = (n + (seed + 1) * 0x9E3779B97F4A7C15) % 2**64
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
            expected.append(((z ^ (z >> 31)) >> 2) % 1000003)
        assert hashed(torch.tensor(numbers), seed, 1000003).tolist() == expected


@pytest.mark.parametrize("sharing", ["stable", "roast", "hashed"])
def test_gradients_are_summed_over_the_users_of_a_cell(sharing):
    for scaled in (False, True):
        model = net()
        restructure_(model, RPS(compression=6, sharing=sharing, scaled=scaled))
        model(X).square().sum().backward()
        layers = [m for m in model if isinstance(m, SharedLinear)]
        assert layers[0].memory is layers[1].memory
        dense = net()
        with torch.no_grad():
            for d, m in zip(dense, model, strict=True):
                if isinstance(m, SharedLinear):
                    d.weight.copy_(m.dense())
        dense(X).square().sum().backward()
        expected, users = torch.zeros_like(layers[0].memory), torch.zeros_like(layers[0].memory) + 1e-6
        for layer, d in zip(layers, (dense[0], dense[2]), strict=True):
            expected.index_add_(
                0, layer.where.flatten(), (layer.scale * layer.sign * d.weight.grad).flatten()
            )
            users += layer.scale**2 * torch.bincount(layer.where.flatten(), minlength=len(users))
        assert torch.allclose(layers[0].memory.grad, expected / users if scaled else expected)


def test_memory_is_as_small_as_was_asked_for():
    model = net()
    done = restructure_(model, RPS(compression=20))
    assert done.after == -(-TOTAL // 20) == len(model[0].memory)
    assert len({id(p) for p in model.parameters() if p.dim() == 1 and len(p) == done.after}) == 1


def test_layers_start_with_the_deviation_of_he():
    model = nn.Sequential(nn.Linear(40, 90), nn.Linear(90, 70))
    restructure_(model, RPS(compression=3))
    for layer in model:
        spread = float(layer.dense().detach().double().square().mean().sqrt())
        assert spread == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.1)
    twice = nn.Sequential(nn.Linear(40, 90), nn.Linear(90, 70))  # what they start from plays no part
    restructure_(twice, RPS(compression=3))
    assert torch.equal(twice[1].dense(), model[1].dense())


def test_sharing_against_pruning_at_equal_bytes_on_digits():
    """A hundred times less memory, with 4 bytes for a number and 2 for the index of a kept connection: where pruning leaves too
    little to connect anything, shared weights still compute. The figures of this run."""
    task, found = digits(), {}
    total = 64 * 96 + 96 * 48 + 48 * 10
    kept = round(total / 100 * 4 / 6)
    for method in (
        RPS(compression=100),
        GMP(kept=kept, steps=300, every=10, allocation="global"),
        StaticRandom(kept=kept),
    ):
        model = mlp([64, 96, 48, 10], seed=5)
        if isinstance(method, RPS):
            assert restructure_(model, method).after == -(-total // 100)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
        if not isinstance(method, RPS):
            attach(model, optimizer, method)
        found[method.name] = fit(model, task, optimizer=optimizer, steps=300, seed=5).validation.accuracy
    assert found == pytest.approx({"rps": 0.833, "gmp": 0.437, "static_random": 0.078}, abs=0.08)
