"""Signs of a run that was too short: their formulas, and that they go away in a longer one."""

import math

import pytest
import torch
from torch import nn

from openwork import RigL, attach, undertraining
from openwork.tasks.digits import digits
from openwork.tasks.mlp import mlp
from openwork.tasks.training import fit


def batches(count=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(4 + i, 5, generator=g), torch.randint(3, (4 + i,), generator=g)) for i in range(count)
    ]


def test_the_formulas():
    one, other = (nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)) for _ in range(2))
    other[0].eval()
    found = undertraining(one, other, batches())
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    p = one[1](x).detach().softmax(-1).double()
    assert found.loss == pytest.approx(float(-p[torch.arange(len(y)), y].log().mean()), rel=1e-5)
    assert found.entropy == pytest.approx(float(-(p * p.log()).sum(-1).mean()), rel=1e-5)
    assert found.gap == found.loss - found.dense_loss
    assert [m.training for m in (one, one[0], other, other[0])] == [True, True, True, False]


def test_sure_and_without_an_idea():
    blank, sure = nn.Linear(5, 3), nn.Linear(5, 3)
    with torch.no_grad():
        blank.weight.zero_(), blank.bias.zero_(), sure.weight.zero_()
        sure.bias.copy_(torch.tensor([0.0, 1e6, 0.0]))
    x = [(torch.ones(2, 4, 5), torch.ones(2, 4, dtype=torch.int64))]
    found = undertraining(sure, blank, x)
    assert (found.loss, found.entropy) == (0.0, 0.0)
    assert found.dense_loss == found.dense_entropy == pytest.approx(math.log(3))
    assert "as well trained as the dense network" in str(found)
    assert "train longer" in str(undertraining(blank, sure, x))


def test_there_must_be_data():
    with pytest.raises(ValueError, match="there is none"):
        undertraining(nn.Linear(5, 3), nn.Linear(5, 3), [])


def test_a_longer_run_mends_it_on_digits():
    """RigL at 95 % after as many steps as the dense network, and after six times as many."""
    task = digits()

    def trained(method, steps):
        model = mlp([64, 96, 48, 10], seed=5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if method is not None:
            attach(model, optimizer, method)
        fit(model, task, optimizer=optimizer, steps=steps, seed=5)
        return model

    dense, data = trained(None, 120), [(task.train.inputs, task.train.targets)]
    short, long = (
        undertraining(trained(RigL(sparsity=0.95, steps=steps, every=12), steps), dense, data)
        for steps in (120, 720)
    )
    assert short.gap > 0.05
    assert short.entropy > 3 * short.dense_entropy
    assert long.gap < 0.25 * short.gap
    assert long.entropy < 0.5 * short.entropy
