"""Features chosen by a sparse autoencoder against scikit-learn's selectors: accuracy of a forest on them, and time.

python benchmarks/findings/features.py
"""

import time
import warnings

import numpy as np
import torch
from evidence import publish

import openwork as ow
from openwork.tasks import get
from openwork.tasks.task import fewer

SEEDS = range(3)


def selectors(x, y, k, seed):
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.feature_selection import SelectKBest, f_classif, mutual_info_classif

    def best(score):
        return SelectKBest(score, k=k).fit(x, y).get_support(indices=True)

    def trees():
        forest = ExtraTreesClassifier(50, random_state=seed).fit(x, y)
        return np.argsort(-forest.feature_importances_)[:k]

    with np.errstate(all="ignore"):
        yield (
            "QuickSelection (no labels)",
            lambda: np.asarray(ow.select_features(torch.tensor(x), k, seed=seed).indices),
        )
        yield "variance (no labels)", lambda: np.argsort(-x.var(0))[:k]
        yield "random (no labels)", lambda: np.random.default_rng(seed).permutation(x.shape[1])[:k]
        yield "F test", lambda: best(f_classif)
        yield "mutual information", lambda: best(lambda a, b: mutual_info_classif(a, b, random_state=seed))
        yield "importance in a forest", trees


def pictures(return_X_y):
    """Pixels of a part of MNIST, the paper's own data; ``return_X_y`` as scikit-learn's loaders have it."""
    part = fewer(get("mnist"), 2000).train
    return part.inputs.flatten(1).numpy().astype(np.float64), part.targets.numpy()


def main():
    from sklearn.datasets import load_breast_cancer, load_digits, load_wine
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import train_test_split

    warnings.simplefilter("ignore")
    rows = []
    for name, load, k in (
        ("mnist", pictures, 50),
        ("digits", load_digits, 20),
        ("breast_cancer", load_breast_cancer, 8),
        ("wine", load_wine, 5),
    ):
        x, y = load(return_X_y=True)
        found = {}
        for seed in SEEDS:
            x_train, x_test, y_train, y_test = train_test_split(
                x, y, test_size=0.3, random_state=seed, stratify=y
            )
            everything = [("all features", lambda width=x.shape[1]: np.arange(width))]
            for how, choose in [*everything, *selectors(x_train, y_train, k, seed)]:
                begin = time.perf_counter()
                columns = choose()
                seconds = time.perf_counter() - begin
                forest = ExtraTreesClassifier(50, random_state=0).fit(x_train[:, columns], y_train)
                found.setdefault(how, []).append((forest.score(x_test[:, columns], y_test), seconds))
        for how, runs in found.items():
            accuracy, seconds = np.mean(runs, 0)
            rows.append(
                {
                    "data": name,
                    "features": k if how != "all features" else x.shape[1],
                    "how": how,
                    "accuracy": float(accuracy),
                    "accuracy_std": float(np.std([a for a, _ in runs], ddof=1)),
                    "seconds": float(max(seconds, 1e-4)),
                }
            )
    setting = (
        "2000 pictures of MNIST (50 of 784 pixels), scikit-learn's digits (20 of 64), breast cancer (8 of 30), wine (5 of 13); "
        "forest of 50 trees, 3 splits"
    )
    publish(
        "features",
        setting,
        rows,
        x="seconds",
        y="accuracy",
        color="how",
        log_x=True,
        title="on the features chosen",
    )


if __name__ == "__main__":
    main()
