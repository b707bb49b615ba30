"""How much does it matter which layer keeps how many? ERK against uniform, on random topologies.

Evci et al., 2020; Liu et al., 2022.

python benchmarks/findings/allocation.py
"""

from evidence import SEEDS, clothes, publish, summary, trained

import openwork as ow

STEPS = 300


def main():
    task, rows = clothes(), []
    for sparsity in (0.9, 0.98, 0.995):
        for allocation in ("uniform", "erk"):
            found = [
                trained(
                    task,
                    (784, 300, 100, 10),
                    ow.StaticRandom(sparsity=sparsity, allocation=allocation, seed=seed),
                    steps=STEPS,
                    seed=seed,
                )[2].accuracy
                for seed in SEEDS
            ]
            accuracy, spread = summary(found)
            rows.append(
                {"sparsity": sparsity, "allocation": allocation, "accuracy": accuracy, "accuracy_std": spread}
            )
    setting = (
        f"Fashion-MNIST, {len(task.train)} examples, LeNet-300-100, {STEPS} steps, static random, 3 seeds"
    )
    publish(
        "allocation",
        setting,
        rows,
        x="sparsity",
        y="accuracy",
        color="allocation",
        title="who keeps how many",
    )


if __name__ == "__main__":
    main()
