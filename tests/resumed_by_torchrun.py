"""Run by ``torchrun``: stored layers under DistributedDataParallel, with every method that moves connections and keeps their
number; a straight run against one that is interrupted and begun again. Prints the methods that passed, from the first process.
"""

import copy
import sys

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import openwork as ow
from openwork import processes

STEPS, BREAK = 9, 4
COMMON = {"sparsity": 0.7, "allocation": "uniform", "steps": STEPS, "every": 2}
METHODS = [
    ow.SET(**COMMON),
    ow.RigL(**COMMON, until=1.0),
    ow.GSE(**COMMON, until=1.0),
    ow.ITOP(**COMMON),
    ow.DSTEE(**COMMON, until=1.0),
    ow.MEST(**COMMON),
    ow.CHT(**COMMON),
    ow.DeepR(sparsity=0.7, allocation="uniform", steps=STEPS),
]


def begun(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 9), nn.Tanh(), nn.Linear(9, 3))
    ow.to_sparse_(model, method)
    return model, torch.optim.Adam(model.parameters(), lr=0.02)


def learn(model, optimizer, method, first, last, resume=None):
    wrapped = DistributedDataParallel(model)
    sparsifier = ow.attach(wrapped, optimizer, method, resume=resume)
    before = {name: c.positions.clone() for name, c in sparsifier.connections.items()}
    rank = distributed.get_rank()
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 7, generator=generator), torch.randint(3, (8,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(wrapped(x[rank::2]), y[rank::2])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    moved = any(not torch.equal(before[name], c.positions) for name, c in sparsifier.connections.items())
    return sparsifier, losses, moved


def check(method):
    model, optimizer = begun(method)
    sparsifier, losses, moved = learn(model, optimizer, method, 0, STEPS)
    assert moved
    assert sparsifier.updates > 1
    straight = copy.deepcopy(model.state_dict())
    digests = {name: processes.digest(c.positions) for name, c in sparsifier.connections.items()}
    processes.require_agreement(digests, "at the end", torch.device("cpu"))

    model, optimizer = begun(method)
    sparsifier, first, _ = learn(model, optimizer, method, 0, BREAK)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    model, optimizer = begun(method)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    _, second, _ = learn(model, optimizer, method, BREAK, STEPS, resume=saved[2])
    assert first + second == losses
    assert all(torch.equal(tensor, straight[name]) for name, tensor in model.state_dict().items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for method in METHODS:
        check(method)
        if distributed.get_rank() == 0:
            print(method.name, flush=True)
    distributed.barrier()
    distributed.destroy_process_group()
    sys.exit(0)
