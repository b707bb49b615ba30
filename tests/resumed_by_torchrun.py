"""Run by ``torchrun``: every training method, masked and stored, under DistributedDataParallel; a straight run against one that
is interrupted and begun again from a checkpoint.

    torchrun --nproc-per-node 2 tests/resumed_by_torchrun.py [METHOD-STORAGE ...]

Prints what came of each from the first process: ``same bits``, or the reason why the method does not begin.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import openwork as ow
from openwork import processes
from openwork.method import registry
from openwork.sparsifier import Training

STEPS, BREAKS = 9, (1, 4, 8)
OPTIONS = {"steps": STEPS, "every": 2, "rounds": 3, "until": 1.0}
TRAINING = {name: cls for name, cls in registry().items() if issubclass(cls, Training)}
CELLS = [f"{name}-{storage}" for name in TRAINING for storage in ("masked", "stored")]


def method_of(name):
    cls = TRAINING[name]
    fields = {f.name for f in dataclasses.fields(cls)}
    options = {key: value for key, value in OPTIONS.items() if key in fields}
    if name == "deep_r":
        options |= {"l1": 0.05, "noise": 0.5}  # so that connections die
    return cls(**options) if cls.reads_zeros else cls(sparsity=0.5, **options)


class Run:
    """Model, optimizer and sparsifier of one process."""

    def __init__(self, cell, seed=0):
        name, _, storage = cell.partition("-")
        self.method = method_of(name)
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))
        if self.method.reads_zeros:
            with torch.no_grad():
                for layer in self.model[::2]:
                    layer.weight.view(-1)[::3] = 0
        if storage == "stored":
            ow.to_sparse_(self.model, None if self.method.reads_zeros else self.method)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02)
        self.wrapped = DistributedDataParallel(self.model)
        self.sparsifier = ow.attach(self.wrapped, self.optimizer, self.method)

    def learn(self, first, last):
        rank, losses = distributed.get_rank(), []
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randn(8, 8, generator=generator), torch.randint(4, (8,), generator=generator)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.wrapped(x[rank::2]), y[rank::2])
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def held(self):
        found = {f"model {name}": tensor.clone() for name, tensor in self.model.state_dict().items()}
        found |= {f"mask {name}": mask for name, mask in self.sparsifier.masks.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer {number} {key}": value.clone() for key, value in state.items()}
        return found


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def check(cell, folder):
    """``same bits``, or why the method does not begin in this storage; both processes must say the same."""
    try:
        straight = Run(cell)
    except ValueError as error:
        return str(error)
    losses, expected = straight.learn(0, STEPS), straight.held()
    digests = {name: processes.digest(c.positions) for name, c in straight.sparsifier.connections.items()}
    digests |= {
        name: processes.digest(tensor.view(torch.uint8)) for name, tensor in expected.items() if tensor.dim()
    }
    processes.require_agreement(digests, "at the end", torch.device("cpu"))
    for stop in BREAKS:
        path = folder / f"{cell}-{stop}-{distributed.get_rank()}"
        run = Run(cell)
        first = run.learn(0, stop)
        ow.save_checkpoint(path, model=run.model, optimizer=run.optimizer, sparsifier=run.sparsifier)
        run = Run(cell, seed=1)
        ow.load_checkpoint(path, model=run.model, optimizer=run.optimizer, sparsifier=run.sparsifier)
        second = run.learn(stop, STEPS)
        assert first + second == losses, f"{cell}: other losses after an interruption at step {stop}"
        assert same(expected, run.held()), f"{cell}: other bits after an interruption at step {stop}"
    return "same bits"


def main(cells):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells:
            found = check(cell, Path(folder))
            if distributed.get_rank() == 0:
                print(f"{cell}: {found}", flush=True)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:] or CELLS)
