"""Is a network better the more connections it has tried? Exploration rate against accuracy (Liu et al., ITOP, 2021)

First in runs of one length: the time between two updates decides both how many places are tried and how long each may grow before
it is judged. Then in longer and longer runs of one interval, beside random topologies that are trained as long.

    python benchmarks/findings/exploration.py
"""

from evidence import SEEDS, clothes, publish, summary, trained

import openwork as ow

STEPS, SPARSITY, SIZES = 600, 0.95, (784, 100, 100, 10)


def explored(task, *, steps, seeds=SEEDS, **options):
    """Accuracies and exploration rates of ITOP, or of a random topology where no ``every`` is given."""
    accuracies, rates = [], []
    for seed in seeds:
        shared = {"sparsity": SPARSITY, "steps": steps, "seed": seed}
        method = ow.ITOP(**shared, **options) if options else ow.StaticRandom(**shared)
        _, sparsifier, metrics = trained(task, SIZES, method, steps=steps, seed=seed)
        accuracies.append(metrics.accuracy)
        rates.append(method.measures(sparsifier)["explored"] if options else 1.0 - SPARSITY)
    accuracy, spread = summary(accuracies)
    return {"explored": summary(rates)[0], "accuracy": accuracy, "accuracy_std": spread}


def main():
    task, rows = clothes(), []
    for grow in ("gradient", "random"):
        for every in (2, 10, 50, 200):
            found = explored(task, steps=STEPS, every=every, grow=grow)
            rows.append({"runs": f"{STEPS} steps, {grow}", "steps": STEPS, "every": every, **found})
    for steps in (200, 800, 3200):
        rows.append(
            {
                "runs": "every 25, gradient",
                "steps": steps,
                "every": 25,
                **explored(task, steps=steps, every=25),
            }
        )
        rows.append(
            {"runs": "never (static random)", "steps": steps, "every": None, **explored(task, steps=steps)}
        )
    setting = f"Fashion-MNIST, {len(task.train)} examples, 784-100-100-10, ITOP at {SPARSITY}, 3 seeds"
    publish(
        "exploration", setting, rows, x="explored", y="accuracy", color="runs", title="explored, and how good"
    )


if __name__ == "__main__":
    main()
