"""Does it help to choose among random topologies before training? Loss at the start against accuracy at the end (Farahani, 2024)

python benchmarks/findings/random_search.py
"""

from evidence import publish

import openwork as ow
from openwork.tasks import get
from openwork.tasks.mlp import mlp

TRIALS, SPARSITY, STEPS, SIZES = 24, 0.95, 120, (64, 64, 64, 10)


def main():
    import torch
    from scipy.stats import kendalltau

    task, rows = get("digits"), []
    batch = task.train.subset(torch.arange(512))
    for seed in range(TRIALS):
        search = ow.RandomSearch(sparsity=SPARSITY, trials=1, seed=seed)
        model = mlp(SIZES, seed=0)
        (_, before), *_ = search.searched(
            model, [(batch.inputs, batch.targets)], torch.nn.functional.cross_entropy
        )
        masks = ow.sparsify_(model, search, data=[(batch.inputs, batch.targets)]).masks
        optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        ow.attach(model, optimizer, ow.KeepZeros(), masks=masks)
        from openwork.tasks.training import evaluate, fit

        fit(model, task, optimizer=optimizer, steps=STEPS, seed=0)
        rows.append(
            {
                "seed": seed,
                "loss_before": before,
                "accuracy": evaluate(model, task.test).accuracy,
                "draw": "random mask",
            }
        )
    ordered = sorted(rows, key=lambda row: row["loss_before"])
    tau = kendalltau([r["loss_before"] for r in rows], [r["accuracy"] for r in rows])
    mean = sum(r["accuracy"] for r in rows) / TRIALS
    print(
        f"Kendall's tau {tau.statistic:+.3f} (p {tau.pvalue:.2f}); best before training {ordered[0]['accuracy']:.4f}, "
    )
    print(f"worst {ordered[-1]['accuracy']:.4f}, mean of all {mean:.4f}")
    setting = (
        f"digits, 64-64-64-10, sparsity {SPARSITY}, {STEPS} steps of Adam, the same weights under {TRIALS} masks; "
        f"tau {tau.statistic:.3f}, p {tau.pvalue:.3f}"
    )
    publish(
        "random_search",
        setting,
        rows,
        x="loss_before",
        y="accuracy",
        color="draw",
        title="before and after training",
    )


if __name__ == "__main__":
    main()
