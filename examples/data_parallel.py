"""Sparse training in several processes: each takes its part of every batch, and all hold the same connections.

    torchrun --nproc-per-node 2 examples/data_parallel.py

Each process draws the same topology from the same seed, and gradients are averaged before they decide where connections grow.
Only gradients of kept connections travel between processes: with `to_sparse_` at 90 % sparsity, a tenth of the dense ones.
"""

import torch
import torch.nn.functional as F
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import openwork as ow
from openwork.tasks.mlp import mlp

STEPS, BATCH = 200, 64


def main() -> None:
    distributed.init_process_group("gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()

    method = ow.RigL(sparsity=0.9, steps=STEPS, every=20)
    model = mlp([20, 256, 256, 2])
    ow.to_sparse_(model, method)  # the same in every process
    model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sparsifier = ow.attach(model, optimizer, method)

    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        x = torch.randn(BATCH * processes, 20, generator=generator)
        y = (x[:, 0] * x[:, 1] > 0).long()
        mine = slice(rank * BATCH, (rank + 1) * BATCH)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[mine]), y[mine])
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.3f}, {sparsifier.updates} updates of the topology")
    if rank == 0:
        print(sparsifier.summary())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
