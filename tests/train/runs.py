"""A small training run: the same network, data and optimizer for every method."""

import itertools

import torch
from torch import nn

from openwork import attach, to_sparse_


def net(sizes=(13, 29, 17, 5), seed=0, dtype=torch.float64):
    """A perceptron whose layers are 0, 2, 4."""
    g = torch.Generator().manual_seed(seed)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / p.shape[-1] ** 0.5)
    return model


class Run:
    """A method at work on a network."""

    def __init__(self, method, model=None, stored=False, lr=0.1, momentum=0.9):
        self.model = net() if model is None else model
        if stored:
            to_sparse_(self.model, method)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum)
        self.sparsifier = attach(self.model, self.optimizer, method)
        self.losses = []

    @property
    def weights(self):
        """Layer -> dense weight, a copy."""
        return {
            f"{i}.weight": m.weight.detach().clone()
            for i, m in enumerate(self.model)
            if isinstance(m, nn.Linear)
        }

    @property
    def counts(self):
        """Connections of every layer."""
        return [c.kept for c in self.sparsifier.connections.values()]

    def backward(self):
        """Gradients of the next batch; a new one each step."""
        g = torch.Generator().manual_seed(1000 + self.sparsifier.step_count)
        first = self.model[0]
        x = torch.randn(16, first.in_features, generator=g, dtype=torch.float64)
        y = torch.randint(self.model[-1].out_features, (16,), generator=g)
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        self.losses.append(loss.item())

    def step(self, count=1):
        for _ in range(count):
            self.backward()
            self.optimizer.step()
        return self
