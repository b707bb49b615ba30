"""Is a network better the more connections it has tried? Exploration rate against accuracy (Liu et al., ITOP, 2021)

The time between two updates decides both how many places are tried and how long each may grow before it is judged.

    python benchmarks/findings/exploration.py
"""

from evidence import SEEDS, clothes, publish, summary, trained

import openwork as ow

STEPS, SPARSITY = 600, 0.95


def main():
    task, rows = clothes(), []
    for grow in ("gradient", "random"):
        for every in (2, 5, 10, 25, 50, 100, 200):
            accuracies, rates = [], []
            for seed in SEEDS:
                method = ow.ITOP(sparsity=SPARSITY, steps=STEPS, every=every, grow=grow, seed=seed)
                _, sparsifier, metrics = trained(task, (784, 100, 100, 10), method, steps=STEPS, seed=seed)
                accuracies.append(metrics.accuracy)
                rates.append(method.measures(sparsifier)["explored"])
            accuracy, spread = summary(accuracies)
            rows.append(
                {
                    "grow": grow,
                    "every": every,
                    "explored": summary(rates)[0],
                    "accuracy": accuracy,
                    "accuracy_std": spread,
                }
            )
    setting = f"Fashion-MNIST, {len(task.train)} examples, 784-100-100-10, {STEPS} steps, ITOP at {SPARSITY}, 3 seeds"
    publish(
        "exploration", setting, rows, x="explored", y="accuracy", color="grow", title="explored, and how good"
    )


if __name__ == "__main__":
    main()
