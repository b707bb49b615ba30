"""N:M from scratch: do pruned weights have to let go? With and without decay, up to 1:16.

Zhou et al., 2021; Bambhaniya et al., 2024.

python benchmarks/findings/nm_decay.py
"""

from evidence import SEEDS, clothes, publish, summary, trained

import openwork as ow

STEPS = 400


def main():
    task, rows = clothes(), []
    for pattern in ("2:4", "1:4", "1:8", "1:16"):
        keep, of = map(int, pattern.split(":"))
        contestants = {
            "straight through": ow.SRSTE(pattern=pattern, steps=STEPS, decay=0.0),
            "SR-STE": ow.SRSTE(pattern=pattern, steps=STEPS, decay=2e-4),
            "SR-STE, decay 0.02": ow.SRSTE(pattern=pattern, steps=STEPS, decay=0.02),
            "decaying mask": ow.PGF(pattern=pattern, steps=STEPS),
            "fixed random": ow.StaticRandom(pattern=pattern, steps=STEPS, allocation="uniform"),
        }
        for name, method in contestants.items():
            found = [
                trained(task, (784, 128, 128, 10), method, steps=STEPS, seed=seed)[2].accuracy
                for seed in SEEDS
            ]
            accuracy, spread = summary(found)
            rows.append(
                {
                    "density": keep / of,
                    "pattern": pattern,
                    "method": name,
                    "accuracy": accuracy,
                    "accuracy_std": spread,
                }
            )
    setting = f"Fashion-MNIST, {len(task.train)} examples, 784-128-128-10, {STEPS} steps, 3 seeds"
    publish(
        "nm_decay",
        setting,
        rows,
        x="density",
        y="accuracy",
        color="method",
        log_x=True,
        title="n of m from scratch",
    )


if __name__ == "__main__":
    main()
