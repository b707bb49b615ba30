"""Does the average number of parameters say how good a sparse run will be? (Jin et al., The Journey Matters, 2025)

Small models of the next character (the eight before it, one-hot), dense and gradually pruned, planned by ``ow.pretraining`` at
equal compute. One law is fitted to the dense runs alone; then it foretells the sparse ones, from their average and from their
final size.

    python benchmarks/findings/average_law.py
"""

import math

import torch
from evidence import publish

import openwork as ow
from openwork.compare.perceptrons import Perceptrons
from openwork.tasks import get
from openwork.tasks.mlp import mlp

CONTEXT, BATCH = 8, 64


def text():
    task = get("tiny_shakespeare")
    return task.train.inputs.flatten(), task.test.inputs.flatten()[:40_000], len(task.classes)


def batch(tokens, where, alphabet):
    windows = tokens[where.unsqueeze(1) + torch.arange(CONTEXT + 1)]
    return torch.nn.functional.one_hot(windows[:, :-1], alphabet).flatten(1).float(), windows[:, -1]


def pretrained(tokens, test, alphabet, sizes, method, steps):
    model, g = mlp(sizes, seed=0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if method is not None:
        ow.attach(model, optimizer, method)
    for _ in range(steps):
        x, y = batch(tokens, torch.randint(len(tokens) - CONTEXT, (BATCH,), generator=g), alphabet)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x, y = batch(test, torch.arange(0, len(test) - CONTEXT, 4), alphabet)
        return float(torch.nn.functional.cross_entropy(model(x), y))


def main():
    tokens, test, alphabet = text()
    rows = []
    for hidden in (16, 32, 64, 128):
        sizes = (CONTEXT * alphabet, hidden, hidden, alphabet)
        parameters = Perceptrons(sizes).connections
        for steps in (200, 500, 1200):
            compute = 6 * parameters * steps * BATCH
            for sparsity in (0.0, 0.5, 0.8):
                run = ow.pretraining(parameters, compute, sparsity)
                length = round(run.tokens / BATCH)
                method = run.gmp(length, every=10) if sparsity else None
                loss = pretrained(tokens, test, alphabet, sizes, method, length)
                rows.append(
                    {
                        "sparsity": sparsity,
                        "start": parameters,
                        "average": run.average,
                        "final": run.final,
                        "tokens": run.tokens,
                        "loss": loss,
                    }
                )
    dense, sparse = ([r for r in rows if bool(r["sparsity"]) == kind] for kind in (False, True))
    law = ow.fit_average_law(
        [r["average"] for r in dense], [r["tokens"] for r in dense], [r["loss"] for r in dense]
    )
    drawn = []
    for size in ("average", "final", "start"):
        errors = [math.log(law.loss(r[size], r["tokens"]) / r["loss"]) for r in sparse]
        print(
            f"law of the dense runs, sparse ones by their {size} size: mean error {sum(map(abs, errors)) / len(errors):.4f}, "
            f"bias {sum(errors) / len(errors):+.4f} (of log loss)"
        )
        drawn += [
            {"measured": r["loss"], "foretold": law.loss(r[size], r["tokens"]), "by": f"{size} size", **r}
            for r in sparse
        ]
    own = [abs(math.log(law.loss(r["average"], r["tokens"]) / r["loss"])) for r in dense]
    print(f"dense runs themselves: mean error {sum(own) / len(own):.4f}")
    drawn += [
        {"measured": r["loss"], "foretold": law.loss(r["average"], r["tokens"]), "by": "dense", **r}
        for r in dense
    ]
    setting = "tiny Shakespeare, 8 characters to the next, 520-h-h-65, Adam, GMP between 25 % and 75 % of compute, 1 seed"
    publish(
        "average_law", setting, drawn, x="measured", y="foretold", color="by", title="the law of dense runs"
    )


if __name__ == "__main__":
    main()
