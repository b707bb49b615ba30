"""The rate, steps too small for 16 bits, and losses gone wrong."""

import math

import pytest
import torch
from torch import nn

from openwork.finetune.course import rate, train


def test_the_rate_rises_over_a_tenth_and_falls_to_nothing():
    found = [rate(step, 100) for step in range(100)]
    assert found[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert found[10:] == pytest.approx([1 - i / 90 for i in range(90)])
    assert [rate(step, 1) for step in range(1)] == [1]
    assert all(0 < rate(step, 7) <= 1 for step in range(7))


def test_it_is_adamw_without_decay():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=generator)
    own, theirs = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    losses = train([own], lambda i: (x[i] @ own - 1).square(), steps=4, learning_rate=0.1, accumulate=2)
    optimizer = torch.optim.AdamW([theirs], weight_decay=0.0)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 * rate(step, 4)
        optimizer.zero_grad()
        loss = ((x[2 * step] @ theirs - 1).square() + (x[2 * step + 1] @ theirs - 1).square()) / 2
        loss.backward()
        optimizer.step()
        assert losses[step] == pytest.approx(float(loss.detach()))
    assert torch.allclose(own, theirs, atol=1e-7)
    assert own.grad is None


def test_small_steps_add_up_in_16_bits():
    p = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    train([p], lambda _: p.float().sum(), steps=100, learning_rate=1e-3)
    assert p.dtype == torch.bfloat16
    assert float(p[0].detach()) == pytest.approx(
        1 - 0.05, abs=0.006
    )  # single steps would have been rounded away


def test_a_loss_gone_wrong_is_told():
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="repairing: the loss is nan at step 2"):
        train(
            [p],
            lambda i: p.sum() * (math.nan if i == 2 else 1),
            steps=5,
            learning_rate=1e-3,
            what="repairing",
        )
