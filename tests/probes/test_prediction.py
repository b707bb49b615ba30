"""Regressors of graph properties: what they can know, what they cannot, and no peeking."""

import pytest
import torch

from openwork import barabasi_albert, graph_properties, predict_from_graphs, watts_strogatz

pytest.importorskip("sklearn")

GRAPHS = [
    graph_properties(watts_strogatz(n, k, p, seed=n * k))
    for n in (10, 14, 18, 22)
    for k in (2, 4, 6)
    for p in (0.1, 0.6)
] + [graph_properties(barabasi_albert(n, m, seed=n)) for n in (9, 12, 16, 20) for m in (1, 2, 3)]


def test_what_follows_from_a_property_is_predicted():
    scores = [0.1 * graph.degree.mean for graph in GRAPHS]
    found = {p.regressor: p for p in predict_from_graphs(GRAPHS, scores)}
    assert list(found) == ["Bayesian ridge", "random forest", "AdaBoost"]
    assert found["Bayesian ridge"].r2 > 0.99
    assert min(p.r2 for p in found.values()) > 0.9
    for p in found.values():
        assert list(p.importances) == sorted(p.importances, key=p.importances.__getitem__, reverse=True)
    assert "degree mean" in list(found["Bayesian ridge"].importances)[:2]
    assert predict_from_graphs(GRAPHS, scores) == [*found.values()]


def test_chance_is_not():
    scores = torch.randn(len(GRAPHS), generator=torch.Generator().manual_seed(0)).tolist()
    assert max(p.r2 for p in predict_from_graphs(GRAPHS, scores)) < 0.2


def test_the_same_graph_is_never_on_both_sides():
    """Scores that belong to a graph and say nothing of others: a forest that had seen the graph itself would know them."""
    g = torch.Generator().manual_seed(1)
    of_graph = torch.randn(12, generator=g).tolist()
    repeated = [graph for graph in GRAPHS[::3] for _ in range(6)]
    scores = [score for score in of_graph for _ in range(6)]
    assert len(repeated) == len(scores) == 72
    assert max(p.r2 for p in predict_from_graphs(repeated, scores)) < 0.3


def test_what_cannot_be():
    with pytest.raises(ValueError, match="36 graphs and 1 scores"):
        predict_from_graphs(GRAPHS, [0.5])
    with pytest.raises(ValueError, match="1 graphs that differ cannot be split into 5 folds"):
        predict_from_graphs(GRAPHS[:1] * 8, [0.5] * 8)
