"""Small sites to grow on, and what the tests of growth draw."""

import torch
from hypothesis import strategies as st

from openwork.grid import Grid
from openwork.patterns import Unstructured


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(n):
    return Unstructured().grid((n,))


def sorted_places(data, n, count):
    return torch.tensor(sorted(data.draw(st.permutations(range(n)))[:count]), dtype=torch.int64)


class Here:
    """A site with known scores."""

    def __init__(self, scores, grid: Grid):
        self.scores, self.grid, self.device = scores, grid, scores.device

    def gradient_tiles(self):
        yield 0, self.scores

    def momentum_tiles(self):
        yield 0, -self.scores + self.scores.max()


class Graph:
    """A site that has nothing but a graph."""

    device = torch.device("cpu")

    def __init__(self, outputs, inputs):
        self.grid = Unstructured().grid((outputs, inputs))
