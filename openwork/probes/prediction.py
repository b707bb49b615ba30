"""Can the accuracy of a network be told from the graph it is built on? Regressors of its properties, judged on other graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openwork.extras import require
from openwork.probes.graph_properties import GraphProperties


@dataclass(frozen=True)
class Prediction:
    """How well one regressor predicts. Made by :func:`predict_from_graphs`.

    Attributes:
        regressor: its name.
        r2: part of the variance of the scores that is explained, on graphs it was not fitted to; negative where their mean would
            have done better.
        importances: property -> by how much R^2 falls, on those graphs, when the values of the property are shuffled; in
            descending order.
    """

    regressor: str
    r2: float
    importances: dict[str, float]


def predict_from_graphs(
    graphs: Sequence[GraphProperties], scores: Sequence[float], *, folds: int = 5, seed: int = 0
) -> list[Prediction]:
    """Fit Bayesian ridge, a random forest and AdaBoost to graph properties, and judge each by cross-validation.

    Graphs with the same properties (one graph trained from several seeds, say) are in the same fold, or a regressor would
    be asked about graphs it has seen.

    Args:
        graphs: of networks that were trained.
        scores: what each reached, such as its test accuracy.
        folds: 5.
        seed: of the regressors, the folds and the shuffling.

    Raises:
        MissingExtra: scikit-learn is not installed.
        ValueError: not as many scores as graphs, or fewer different graphs than folds.

    Paper: Stier, Darji & Granitzer, 2021, arXiv 2107.12917, and Darji, Investigating Sparsity in Recurrent Neural Networks, 2024,
    arXiv 2407.20601, who found R^2 of 0.4 to 0.9.
    """
    if len(graphs) != len(scores):
        raise ValueError(f"every graph has one score; got {len(graphs)} graphs and {len(scores)} scores")
    rows = [graph.numbers() for graph in graphs]
    groups = [tuple(row.values()) for row in rows]
    if not 2 <= folds <= len(set(groups)):
        raise ValueError(
            f"{len(set(groups))} graphs that differ cannot be split into {folds} folds: give more, or ask for fewer folds"
        )
    sklearn = {
        part: require(f"sklearn.{part}", extra="sklearn", to="predict from graph properties")
        for part in ("ensemble", "linear_model", "model_selection", "pipeline", "preprocessing")
    }
    names = list(rows[0])
    x, y = np.array([list(row.values()) for row in rows]), np.array(scores, dtype=float)
    numbered = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    splitter = sklearn["model_selection"].GroupKFold(folds, shuffle=True, random_state=seed)
    splits = list(splitter.split(x, y, [numbered[group] for group in groups]))
    regressors = {
        "Bayesian ridge": sklearn["pipeline"].make_pipeline(
            sklearn["preprocessing"].StandardScaler(), sklearn["linear_model"].BayesianRidge()
        ),
        "random forest": sklearn["ensemble"].RandomForestRegressor(random_state=seed),
        "AdaBoost": sklearn["ensemble"].AdaBoostRegressor(random_state=seed),
    }
    found = []
    for name, regressor in regressors.items():
        generator = np.random.default_rng(seed)
        predicted, shuffled = np.empty(len(y)), np.empty((SHUFFLES, len(names), len(y)))
        for fitted, held in splits:
            asked = np.tile(x[held], (SHUFFLES, len(names), 1, 1))
            for each in asked:
                for column, table in enumerate(each):
                    table[:, column] = generator.permutation(table[:, column])
            regressor.fit(x[fitted], y[fitted])
            predicted[held] = regressor.predict(x[held])
            answers = regressor.predict(asked.reshape(-1, len(names)))
            shuffled[..., held] = answers.reshape(SHUFFLES, len(names), len(held))
        r2 = _explained(y, predicted)
        falls = {name: r2 - _explained(y, shuffled[:, column]) for column, name in enumerate(names)}
        found.append(Prediction(name, r2, dict(sorted(falls.items(), key=lambda item: -item[1]))))
    return found


SHUFFLES = 5
"""How often each property is shuffled."""


def _explained(scores: np.ndarray, predicted: np.ndarray) -> float:
    """R^2 of predictions ``[..., n]``, the mean of several."""
    error = ((scores - predicted) ** 2).sum(-1).mean()
    spread = ((scores - scores.mean()) ** 2).sum()
    return 1.0 - float(error / spread) if spread else 0.0
