"""Models with layers of every kind, and the rows of their plans."""

import torch
from torch import nn

from openwork.plan import plan
from openwork.train.static_random import StaticRandom


class Conv1D(nn.Module):
    """As in transformers: inputs first."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


class TinyExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 4, 6))
        self.gate = nn.Parameter(torch.randn(3, 6))


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.conv = nn.Conv2d(4, 8, (3, 2), groups=2)
        self.up = nn.ConvTranspose2d(4, 10, 3, groups=2)
        self.lstm = nn.LSTM(6, 5, proj_size=3)
        self.cell = nn.GRUCell(6, 5)
        self.attention = nn.MultiheadAttention(6, 2, add_bias_kv=True)
        self.gpt = Conv1D(9, 6)
        self.experts = TinyExperts()
        self.bilinear = nn.Bilinear(3, 4, 5)
        self.mystery = nn.ParameterDict({"table": torch.randn(3, 3)})
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight


def rows(model, method=None):
    return {row.name: row for row in plan(model, method or StaticRandom(sparsity=0.5))}


def mlp():
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4))
