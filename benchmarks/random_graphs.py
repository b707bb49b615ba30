"""Can the accuracy of a network be told from the graph it is built on? (Stier et al., 2021; Darji, 2024)

Feed-forward networks on small worlds and graphs with hubs, on the digits; and RNN, GRU and LSTM whose hidden units are linked by
such graphs, on strings of the Reber grammar. Graphs of many sizes, as in the papers; and, because a graph with more links simply
has more parameters, graphs that all have 144 links. R^2 on graphs that were not fitted to.

    python benchmarks/random_graphs.py            # about twenty minutes on one core
"""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

import torch
from torch import nn

import openwork as ow
from openwork.compare.machine import machine
from openwork.progress import phase
from openwork.tasks import evaluate, fit
from openwork.tasks.digits import digits
from openwork.tasks.initial import seeded
from openwork.tasks.reber import SYMBOLS, reber

SEEDS = range(2)
REWIRING = (0.0, 0.1, 0.3, 0.6, 1.0)


def of_many_sizes():
    worlds = [
        ow.watts_strogatz(n, k, p, seed=n + k) for n in (16, 32, 48) for k in (2, 4, 6) for p in REWIRING
    ]
    return worlds + [
        ow.barabasi_albert(n, m, seed=s) for n in (16, 32, 48) for m in (1, 2, 3) for s in range(3)
    ]


def of_144_links():
    rings = [(72, 4), (48, 6), (36, 8), (24, 12)]
    hubs = [(74, 2), (51, 3), (40, 4), (30, 6)]
    worlds = [ow.watts_strogatz(n, k, p, seed=s) for n, k in rings for p in REWIRING for s in range(2)]
    return worlds + [ow.barabasi_albert(n, m, seed=s) for n, m in hubs for s in range(4)]


class Reader(nn.Module):
    """Reads a string with a recurrent cell and says whether it is allowed."""

    def __init__(self, cell, hidden, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.rnn = getattr(nn, cell)(len(SYMBOLS), hidden, batch_first=True)
        self.head = seeded(lambda: nn.Linear(hidden, 2), seed)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def on_digits(task, graph, seed):
    model = ow.graph_network(graph, 64, 10, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    ow.attach(model, optimizer, ow.KeepZeros())
    fit(model, task, optimizer=optimizer, steps=150, seed=seed)
    return evaluate(model, task.test).accuracy


def on_strings(cell):
    def trained(task, graph, seed):
        model = Reader(cell, len(graph), seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        masks = ow.recurrent_masks(model, graph)
        ow.attach(model, optimizer, ow.KeepZeros(exclude=("*weight_ih*", "head.*")), masks=masks)
        fit(model, task, optimizer=optimizer, steps=60, seed=seed)
        return evaluate(model, task.test).accuracy

    return trained


def main():
    strings, images = reber(), digits()
    kinds = {"feed-forward, digits": (images, on_digits)}
    kinds |= {f"{cell}, Reber strings": (strings, on_strings(cell)) for cell in ("RNN", "GRU", "LSTM")}
    rows = []
    for sort, graphs in (("many sizes", of_many_sizes()), ("144 links", of_144_links())):
        properties = [ow.graph_properties(graph) for graph in graphs]
        for kind, (task, trained) in kinds.items():
            with phase(f"{kind}, {sort}", len(graphs)) as bar:
                scores = []
                for graph in graphs:
                    scores.append(mean(trained(task, graph, seed) for seed in SEEDS))
                    bar.advance()
            for found in ow.predict_from_graphs(properties, scores):
                first = list(found.importances.items())[:3]
                rows.append(
                    {
                        "networks": kind,
                        "graphs": sort,
                        "accuracy": [min(scores), mean(scores), max(scores)],
                        "regressor": found.regressor,
                        "r2": found.r2,
                        "first": dict(first),
                    }
                )
                told = ", ".join(f"{name} {fall:.2f}" for name, fall in first)
                print(f"{kind:24} {sort:10} {found.regressor:14} R^2 {found.r2:5.2f}   {told}", flush=True)
    date = datetime.now(UTC).date().isoformat()
    path = Path(__file__).parent / "results" / f"{date}-random-graphs.json"
    path.write_text(json.dumps({"machine": asdict(machine()), "rows": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
