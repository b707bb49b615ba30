"""Does training pull degrees away from those of a random graph? SET on pictures (Mocanu et al., 2018)

Distance of the degrees of input pixels from a random topology's (0 = alike, 1 = apart), and how many of the connections look at
the border of the picture, which is nearly always black. The topology changes once an epoch, as in the paper.

    python benchmarks/findings/degrees.py
"""

import torch
from evidence import clothes, publish, trained

import openwork as ow
from openwork.probes.topology import degrees, drift, gini, tail_exponent

SPARSITY, EVERY = 0.95, 79


def main():
    task, rows = clothes(), []
    border = torch.ones(28, 28, dtype=torch.bool)
    border[4:24, 4:24] = False
    for name, cls in (("SET", ow.SET), ("RigL", ow.RigL), ("static random", ow.StaticRandom)):
        for steps in (1, 5 * EVERY, 20 * EVERY, 80 * EVERY):
            # The weights as they are: scaled up to so few inputs, those of the start would never be among the weakest.
            options = {"sparsity": SPARSITY, "steps": steps, "init": "keep"}
            if cls is not ow.StaticRandom:
                options |= {"every": EVERY}
            if cls is ow.StaticRandom and steps > 1:
                continue  # it never changes
            _, sparsifier, metrics = trained(task, (784, 200, 200, 10), cls(**options), steps=steps, seed=0)
            mask = sparsifier.masks["fc1.weight"]
            inputs = degrees(mask)[1]
            rows.append(
                {
                    "method": name,
                    "steps": steps,
                    "drift": drift(inputs, len(mask)),
                    "gini": gini(inputs),
                    "tail_exponent": tail_exponent(inputs, 10),
                    "at_the_border": int(inputs[border.flatten()].sum()) / int(inputs.sum()),
                    "accuracy": metrics.accuracy,
                }
            )
    setting = f"Fashion-MNIST, {len(task.train)} examples, 784-200-200-10, {SPARSITY} sparse, updates every {EVERY} steps, seed 0"
    publish(
        "degrees", setting, rows, x="steps", y="drift", color="method", log_x=True, title="degrees of pixels"
    )


if __name__ == "__main__":
    main()
