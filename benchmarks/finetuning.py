"""What fine-tuning learns and forgets, and what is left when its result is thinned or merged: digits, five seeds.

    python benchmarks/finetuning.py [--seeds 5] [--out benchmarks/results/DATE-finetuning.json]

A perceptron of 64 - 256 - 128 - 10 units is trained on the digits 0 to 4, then fine-tuned on 5 to 9 alone. Accuracies are of
validation examples among their own five classes. Then the tuned model is thinned (DARE), and two models that were tuned on either
half are merged. A convolutional network is trained with and without TRP, and as Maestro, and decomposed.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import openwork as ow
from openwork.compare.machine import machine
from openwork.tasks.digits import digits
from openwork.tasks.mlp import mlp
from openwork.tasks.task import Split

STEPS, BATCH, LR = 400, 64, 1e-3


def of_classes(split: Split, classes: range) -> Split:
    return split.subset((split.targets >= classes.start) & (split.targets < classes.stop))


def batches(split: Split, steps: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield split.subset(torch.randint(len(split), (BATCH,), generator=g))


def learn(model, split, optimizer, steps, seed, schedule=True):
    model.train()
    for step, batch in enumerate(batches(split, steps, seed)):
        if schedule:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("peak", group["lr"]) * (1 - step / steps)
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model, split, classes: range) -> float:
    """Among the classes alone."""
    part = of_classes(split, classes)
    logits = model.eval()(part.inputs)[:, classes.start : classes.stop]
    return float((logits.argmax(1) + classes.start == part.targets).float().mean())


OLD, NEW, ALL = range(5), range(5, 10), range(10)


def pretrained(task, seed):
    model = mlp([64, 256, 128, 10], seed=seed)
    return learn(
        model, of_classes(task.train, OLD), torch.optim.AdamW(model.parameters(), lr=LR), STEPS, seed
    )


def tune(base, task, seed, how, lr=LR, classes=NEW, steps=STEPS):
    """Fine-tune a copy; returns it and how many numbers were trained."""
    model = copy.deepcopy(base)
    split = of_classes(task.train, classes)
    if isinstance(how, ow.LoRA):
        adapters = ow.adapt_(model, how)
        learn(model, split, torch.optim.AdamW(adapters.parameters(), lr=lr), steps, seed + 100)
        trained = adapters.trainable
        adapters.merge_()
    elif how in (None, "adamr"):
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
        if how:
            ow.regularize(model, optimizer, ow.AdamR(decay=1e-2))
        learn(model, split, optimizer, steps, seed + 100)
        trained = sum(p.numel() for p in model.parameters())
    elif isinstance(how, (ow.S2FT, ow.SaRA)):
        part = ow.thaw_(model, how)
        trained = part.trainable
        optimizer = torch.optim.AdamW(part.parameters(), lr=lr, weight_decay=0.0)
        part.attach(optimizer)
        learn(model, split, optimizer, steps, seed + 100)
        part.merge_()
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
        sparsifier = ow.attach(model, optimizer, how)
        learn(model, split, optimizer, steps, seed + 100)
        shares = how.measures(sparsifier)
        trained = sum(p.numel() for p in model.parameters())
        if isinstance(how, ow.PST):
            trained = round(shares["share of the weights that is trained"] * sparsifier.plan.numel)
            trained += sum(p.numel() for p in model.parameters() if p.dim() == 1)
        sparsifier.detach()
    return model, trained


def tunings():
    names = {"down": ("*.weight",)}
    return {
        "nothing": None,
        "full": (None, LR),
        "lora, rank 8": (ow.LoRA(kind="lora", rank=8), 3e-3),
        "s2ft, 14 % of the inputs": (ow.S2FT(names=names, shares={"down": 0.14}), 3e-3),
        "sara, 14 % of the weights": (ow.SaRA(fraction=0.14, steps=STEPS, nuclear=0.0), 3e-3),
        "sara, 14 %, nuclear norm": (ow.SaRA(fraction=0.14, steps=STEPS, nuclear=5e-4), 3e-3),
        "gmp, 90 % sparse": (ow.GMP(sparsity=0.9, steps=STEPS, every=5, begin=0.1, until=0.7), LR),
        "movement, 90 % sparse": (ow.Movement(sparsity=0.9, steps=STEPS, every=5), LR),
        "soft movement, 90 % sparse": (ow.SoftMovement(sparsity=0.9, steps=STEPS, every=5), LR),
        "pst, 90 % sparse": (ow.PST(sparsity=0.9, steps=STEPS, every=5, rank=2, score_rank=2), LR),
    }


def thinnings():
    found = {}
    for p in (0.5, 0.9, 0.95, 0.99):
        found[f"dare, {p:.0%} dropped"] = ow.DARE(sparsity=p)
        found[f"darex-q, {p:.0%} dropped"] = "searched", p
        found[f"smallest, {p:.0%} dropped"] = ow.DARE(sparsity=p, drop="smallest")
    return found


def thin(base, tuned, method, task, seed):
    if isinstance(method, tuple):
        share = 1 - method[1]
        part = of_classes(task.train, NEW)

        def far(q):
            total = 0.0
            for s in range(2):
                model = copy.deepcopy(base)
                ow.merge_(model, [tuned], ow.DARE(sparsity=method[1], rescale=q, seed=1000 + 7 * seed + s))
                with torch.no_grad():
                    total += float((model(part.inputs) - tuned(part.inputs)).square().mean())
            return total

        from openwork.merging.rescaling import searched

        method = ow.DARE(sparsity=method[1], rescale=searched(far, share))
    model = copy.deepcopy(base)
    ow.merge_(model, [tuned], replace(method, seed=seed))
    return accuracy(model, task.validation, NEW)


def merged(task, seed):
    """Two tunings of a model that knows a little of all digits."""
    base = mlp([64, 256, 128, 10], seed=seed)
    learn(base, task.train, torch.optim.AdamW(base.parameters(), lr=LR), 40, seed)
    halves = [tune(base, task, seed + i, None, classes=c, steps=200)[0] for i, c in enumerate((OLD, NEW))]
    found = {"base": accuracy(base, task.validation, ALL)}
    for name, model in zip(("tuned on 0 to 4", "tuned on 5 to 9"), halves, strict=True):
        found[name] = accuracy(model, task.validation, ALL)
    methods = {
        "task arithmetic, 0.5": ow.TaskArithmetic(scale=0.5),
        "task arithmetic, 0.3": ow.TaskArithmetic(),
        "ties": ow.TIES(),
        "dare 90 %, sum, 0.5": ow.DARE(sparsity=0.9, scale=0.5),
        "dare 90 %, ties": ow.DARE(sparsity=0.9, combine_by="ties", scale=0.5),
    }
    for name, method in methods.items():
        model = copy.deepcopy(base)
        ow.merge_(model, halves, replace(method, seed=seed))
        found[name] = accuracy(model, task.validation, ALL)
    return found


def convnet(seed):
    g = torch.Generator().manual_seed(seed)
    layers = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    layers += [
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    ]
    model = nn.Sequential(*layers)
    for p in model.parameters():
        p.data = (
            torch.randn(p.shape, generator=g) * (2 / max(1, p[0].numel())) ** 0.5
            if p.dim() > 1
            else 0 * p.data
        )
    return model


def low_rank(task, seed):
    found = {}
    for name in ("plain", "trp", "maestro"):
        model = convnet(seed)
        maestro = ow.Maestro(penalty=2e-4, least=1e-2, shrink=50, exclude=("0.weight", "9.weight"), seed=seed)
        if name == "maestro":
            ow.restructure_(model, maestro)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        if name == "trp":
            energy = ow.Linear(start=1.0, stop=0.9, until=0.3)
            trp = ow.TRP(steps=2 * STEPS, period=20, energy=energy, exclude=("0.weight", "9.weight"))
            ow.regularize(model, optimizer, trp)
        elif name == "maestro":
            ow.regularize(model, optimizer, maestro)
        learn(model, task.train, optimizer, 2 * STEPS, seed)
        found[f"{name}, dense"] = accuracy(model, task.validation, ALL)
        for rank in (12, 8, 5, 3):
            small = copy.deepcopy(model)
            if name == "maestro":
                dense = sum(m.left.shape[0] * m.right.shape[1] for m in (small[2], small[5]))
                small = ow.at_ranks(
                    small,
                    sum(rank * (m.left.shape[0] + m.right.shape[1]) for m in (small[2], small[5])) / dense,
                )
            else:
                for i in (2, 5):
                    conv = small[i]
                    u, s, v = torch.linalg.svd(conv.weight.detach().flatten(1), full_matrices=False)
                    conv.weight.data = ((u[:, :rank] * s[:rank]) @ v[:rank]).view_as(conv.weight)
            found[f"{name}, rank {rank}"] = accuracy(small, task.validation, ALL)
    return found


def spread(values):
    return {
        "mean": statistics.mean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def summary(tables, numbers, seeds):
    """Means and deviations over the seeds so far."""
    tuning = {
        name: {"trained": numbers[name], "new": spread([a for a, _ in v]), "old": spread([b for _, b in v])}
        for name, v in tables["tuning"].items()
    }
    others = {
        key: {n: spread(v) for n, v in tables[key].items()} for key in ("thinning", "merging", "low rank")
    }
    return {"machine": str(machine()), "seeds": seeds, "tuning": tuning, **others}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    task, began = digits(), time.perf_counter()
    tables: dict[str, dict[str, list]] = {"tuning": {}, "thinning": {}, "merging": {}, "low rank": {}}
    numbers, record = {}, {}
    for seed in range(options.seeds):
        base = pretrained(task, seed)
        models = {}
        for name, what in tunings().items():
            model, trained = (base, 0) if what is None else tune(base, task, seed, *what)
            models[name], numbers[name] = model, trained
            pair = [accuracy(model, task.validation, NEW), accuracy(model, task.validation, OLD)]
            tables["tuning"].setdefault(name, []).append(pair)
        regular, _ = tune(base, task, seed, "adamr")
        for tuned_name, tuned in (("full", models["full"]), ("adamr", regular)):
            for name, method in thinnings().items():
                got = thin(base, tuned, method, task, seed)
                tables["thinning"].setdefault(f"{tuned_name}: {name}", []).append(got)
        for name, got in merged(task, seed).items():
            tables["merging"].setdefault(name, []).append(got)
        for name, got in low_rank(task, seed).items():
            tables["low rank"].setdefault(name, []).append(got)
        print(f"seed {seed} done after {time.perf_counter() - began:.0f} s", flush=True)
        record = summary(tables, numbers, seed + 1)
        if options.out:
            options.out.write_text(json.dumps(record, indent=1) + "\n")
    for name, row in record["tuning"].items():
        print(
            f"{name:28} {row['trained']:>6} trained   new {row['new']['mean']:.3f}   old {row['old']['mean']:.3f}"
        )
    for key in ("thinning", "merging", "low rank"):
        print()
        for name, row in record[key].items():
            print(f"{name:40} {row['mean']:.3f} +- {row['deviation']:.3f}")


if __name__ == "__main__":
    main()
