"""Features chosen by a sparse autoencoder: what strength is, and that informative features win."""

import pytest
import torch

from openwork import SET, QuickSelection, attach, select_features
from openwork.features import standardised
from tests.train.runs import Run, net


def latent_table(informative=10, noise=90, samples=400, seed=0):
    """Features that mix three hidden causes, scattered among pure noise of ten times their scale."""
    g = torch.Generator().manual_seed(seed)
    causes = torch.randn(samples, 3, generator=g)
    table = 10 * torch.randn(samples, informative + noise, generator=g)
    where = torch.randperm(informative + noise, generator=g)[:informative].sort().values
    table[:, where] = causes @ torch.randn(3, informative, generator=g) + 0.1 * torch.randn(
        samples, informative, generator=g
    )
    return table, where


def test_informative_features_come_first():
    table, where = latent_table()
    found = select_features(table, 10, hidden=100, epochs=3, batch_size=20)
    assert len(set(found.indices.tolist()) & set(where.tolist())) >= 9
    assert found.indices.tolist() == sorted(set(found.indices.tolist()))
    assert found.connections == 2 * 13 * (100 + 100)


def test_a_long_training_learns_noise_and_turns_the_ranking_over():
    table, where = latent_table()
    found = select_features(table, 10, hidden=100, epochs=40, batch_size=20)
    assert len(set(found.indices.tolist()) & set(where.tolist())) <= 3


def test_a_constant_feature_comes_last():
    table, where = latent_table(informative=20, noise=5)
    table[:, where[3]] = 7.0
    found = select_features(table, 24, hidden=100, epochs=10, batch_size=20, seed=1)
    assert int(found.strength.argmin()) == int(where[3])


def test_the_seed_decides_and_nothing_else_is_touched():
    table, _ = latent_table()
    before, state = table.clone(), torch.get_rng_state()
    one, same, other = (select_features(table, 5, hidden=50, epochs=2, seed=s) for s in (3, 3, 4))
    assert torch.equal(one.strength, same.strength)
    assert not torch.equal(one.strength, other.strength)
    assert torch.equal(before, table)
    assert torch.equal(state, torch.get_rng_state())


def test_the_order_and_scale_of_samples_hardly_matter():
    table, _ = latent_table()
    shuffled = 3 * table[torch.randperm(len(table), generator=torch.Generator().manual_seed(5))] + 1
    one, other = (
        set(select_features(t, 10, hidden=100, epochs=3, batch_size=20).indices.tolist())
        for t in (table, shuffled)
    )
    assert len(one & other) >= 8


@pytest.mark.parametrize("stored", [False, True])
def test_strength_leaves_out_what_would_be_dropped(stored):
    method = QuickSelection(sparsity=0.6, steps=20, every=5, drop=0.3)
    run = Run(method, stored=stored).step(7)
    weight = run.weights["0.weight"]
    expected = torch.zeros(weight.shape[1], dtype=torch.float64)
    for sign in (1, -1):
        side = torch.sort(weight.abs()[weight * sign > 0]).values
        cut = side[int(0.3 * len(side) + 1e-9)]
        expected += torch.where((weight * sign > 0) & (weight.abs() >= cut), weight.abs(), 0).sum(0)
    before = run.sparsifier.masks["0.weight"]
    assert method.strength(run.sparsifier, "0.weight").tolist() == pytest.approx(expected.tolist())
    assert torch.equal(before, run.sparsifier.masks["0.weight"])


def test_it_trains_as_set_does():
    method = QuickSelection(sparsity=0.8, steps=20, every=4)
    assert Run(method).step(20).losses == Run(method.reduced_to(SET)).step(20).losses


def test_strength_of_a_convolution_sums_taps():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.Flatten(), torch.nn.Linear(16, 2)).double()
    method = QuickSelection(sparsity=0.0, drop=0.0, steps=2)
    sparsifier = attach(model, None, method)
    expected = model[0].weight.detach().abs().sum((0, 2, 3))
    assert torch.allclose(method.strength(sparsifier, "0.weight"), expected)


def test_standardised():
    table = torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]])
    assert standardised(table).std(0, correction=0).tolist() == pytest.approx([1.0, 0.0])


def test_accuracy_on_the_selected_features_of_digits():
    ensemble = pytest.importorskip("sklearn.ensemble")
    from openwork.tasks import get

    task = get("digits")
    x, test = task.train.inputs.flatten(1), task.test.inputs.flatten(1)

    def accuracy(columns):
        forest = ensemble.ExtraTreesClassifier(30, random_state=0)
        forest.fit(x[:, columns].numpy(), task.train.targets.numpy())
        return forest.score(test[:, columns].numpy(), task.test.targets.numpy())

    found = select_features(x, 30, hidden=200)
    random = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:30]
    everything = accuracy(list(range(64)))
    assert accuracy(found.indices.tolist()) > everything - 0.03
    assert accuracy(found.indices.tolist()) > accuracy(random.tolist())


def test_what_cannot_be():
    table, _ = latent_table()
    with pytest.raises(ValueError, match="cannot choose 101 of 100"):
        select_features(table, 101)
    with pytest.raises(ValueError, match="NaN"):
        select_features(table * torch.nan, 3)
    with pytest.raises(ValueError, match="epochs=0"):
        select_features(table, 3, epochs=0)
    with pytest.raises(ValueError, match="table"):
        select_features(table[0], 3)
    with pytest.raises(KeyError):
        QuickSelection(steps=2).strength(Run(QuickSelection(steps=2), net()).sparsifier, "nothing")
