"""Training by several methods at equal cost, and what is proven of the networks."""

import pytest
import torch
from torch import nn

from openwork.compare.contest import Contestant, train
from openwork.compare.proof import Bench
from openwork.compare.standings import compete
from openwork.layouts.linear import SparseLinear

from .small import STEPS, contestants, setting

KEPT = round(0.25 * (64 * 40 + 40 * 10))


@pytest.fixture(scope="module")
def finished():
    return [*compete(setting(), contestants(), seeds=(0, 1), batches=(1, 33), seconds=0.01)][-1][0]


def test_every_method_keeps_exactly_what_was_asked(finished):
    rows = finished.rows()
    assert [row.method for row in rows] == [contestant.name for contestant in contestants()]
    assert (rows[0].sparsity, rows[0].kept) == (0.0, 64 * 40 + 400)
    for row in rows[1:]:
        assert (row.sparsity_asked, row.kept, row.sparsity) == (0.75, KEPT, pytest.approx(0.75))
        for network in finished.trained[f"{row.method} at 75 %"]:
            stored = [layer for layer in network.model.modules() if isinstance(layer, SparseLinear)]
            assert sum(layer.weight_values.numel() for layer in stored) == KEPT
            assert network.run.steps == STEPS


def test_sparse_training_holds_less_and_gradual_pruning_does_not(finished):
    state = {row.method: row.train_state_bytes for row in finished.rows()}
    assert state["static random"] == state["RigL"] < state["dense"] < state["GMP"]
    assert state["magnitude"] == state["dense"]
    files = {row.method: row.file_bytes for row in finished.rows()}
    assert max(files[name] for name in files if name != "dense") < files["dense"]


def test_means_are_over_the_seeds(finished):
    for row, networks in zip(finished.rows(), finished.trained.values(), strict=True):
        assert row.accuracies == tuple(network.test.accuracy for network in networks)
        assert row.accuracy_mean == pytest.approx(sum(row.accuracies) / 2)
        assert row.accuracy_std == pytest.approx(abs(row.accuracies[0] - row.accuracies[1]) / 2**0.5)
        assert set(row.latency_ms) == set(row.layouts) == {1, 33}
        assert all(set(layers) == {"fc1", "fc2"} for layers in row.layouts.values())


def test_the_best_is_chosen_on_the_validation_part(finished):
    networks = [n for found in finished.trained.values() for n in found if n.contestant.method is not None]
    assert finished.best().validation.accuracy == max(n.validation.accuracy for n in networks)


def test_a_seed_gives_the_same_network_again():
    rigl = contestants()[2]
    first, again, other = train(setting(), rigl, 5), train(setting(), rigl, 5), train(setting(), rigl, 6)
    assert first.run.losses == again.run.losses
    assert torch.equal(first.model.fc1.weight, again.model.fc1.weight)
    assert not torch.equal(first.model.fc1.weight_col, other.model.fc1.weight_col)


def test_pruning_needs_the_dense_network():
    with pytest.raises(ValueError, match="train the dense contestant of seed 3 first"):
        train(setting(), contestants()[-1], 3)


def test_a_contest_begins_with_the_dense_network():
    with pytest.raises(ValueError, match="begins with the dense network"):
        next(compete(setting(), contestants()[1:], seeds=(0,), batches=(1,)))


def test_a_network_that_changes_on_its_way_through_a_file_is_refused(monkeypatch):
    common = setting()
    dense = train(common, Contestant("dense"), 0)
    bench = Bench(dense.model, common.task.test.inputs, (1,), seconds=0.01)
    monkeypatch.setattr("openwork.compare.proof.load", lambda path, into: into)
    with pytest.raises(RuntimeError, match="dense computes something else"):
        bench.prove(dense, common.model(1))


def test_a_bench_needs_enough_examples():
    with pytest.raises(ValueError, match="batches of 9 need as many"):
        Bench(nn.Linear(2, 2), torch.zeros(8, 2), (1, 9))
