"""Does a random topology catch the dense network as both get wider? (Liu et al., 2022; Gadhikar et al., 2023)

A tenth of the weights, drawn at random and never changed, against all of them, at every width.

    python benchmarks/findings/width.py
"""

from evidence import SEEDS, clothes, publish, summary, trained

import openwork as ow

STEPS, SPARSITY = 400, 0.9


def main():
    task, rows = clothes(), []
    for width in (8, 16, 32, 64, 128, 256, 512):
        for name in ("dense", "static random"):
            found = []
            for seed in SEEDS:
                method = None if name == "dense" else ow.StaticRandom(sparsity=SPARSITY, seed=seed)
                found.append(
                    trained(task, (784, width, width, 10), method, steps=STEPS, seed=seed)[2].accuracy
                )
            accuracy, spread = summary(found)
            rows.append({"width": width, "network": name, "accuracy": accuracy, "accuracy_std": spread})
    setting = f"Fashion-MNIST, {len(task.train)} examples, 784-w-w-10, {STEPS} steps, sparsity {SPARSITY} (ERK), 3 seeds"
    publish(
        "width",
        setting,
        rows,
        x="width",
        y="accuracy",
        color="network",
        log_x=True,
        title="random against dense",
    )


if __name__ == "__main__":
    main()
