"""SRigL against a plain re-computation of its update, unit by unit, with dense tensors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from openwork import Condensed, attach, to_sparse_
from openwork.train.srigl import SRigL

SIZES = (11, 9, 6)


def net(seed=0):
    model = nn.Sequential(nn.Linear(SIZES[0], SIZES[1]), nn.Tanh(), nn.Linear(SIZES[1], SIZES[2]))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    return model.double()


def expected_mask(weight, mask, gradient, alpha, budget, ablate):
    """The update in plain loops."""
    out, inputs = weight.shape
    n = int(mask.sum())
    dropped = math.floor(alpha * n + 1e-9)
    entries = [(i, j) for i in range(out) for j in range(inputs)]
    active = [e for e in entries if mask[e]]
    nonzero = sum(float(weight[e]) != 0 for e in active)
    keep = min(n - dropped, nonzero)
    by_strength = sorted(active, key=lambda e: -abs(float(weight[e])))
    by_gradient = sorted(entries, key=lambda e: -abs(float(gradient[e])))
    salient = set(by_strength[:keep]) | set(by_gradient[:dropped])
    count = [sum(e[0] == i for e in salient) for i in range(out)]
    working = list(range(out))
    if ablate is not None:
        tau = max(1, math.floor(ablate * (budget // out)))
        least = max(1, math.ceil(budget / inputs))
        best = sorted(range(out), key=lambda i: -count[i])[:least]
        working = [i for i in range(out) if count[i] >= tau or i in best]
    fan_in = min(budget // len(working), inputs)
    kept = [e for e in by_strength if e[0] in working][:keep]
    after = torch.zeros_like(mask)
    for i in working:
        own = [e for e in kept if e[0] == i][:fan_in]
        others = [e for e in by_gradient if e[0] == i and e not in own][: fan_in - len(own)]
        for e in own + others:
            after[e] = True
    return after


@settings(max_examples=15)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.5, 0.7, 0.85]),
    st.sampled_from([None, 0.3, 0.95]),
    st.booleans(),
)
def test_the_update_is_the_papers(seed, sparsity, ablate, stored):
    method = SRigL(
        sparsity=sparsity, steps=8, every=2, drop=0.4, ablate=ablate, until=1.0, allocation="uniform"
    )
    model = net(seed)
    if stored:
        to_sparse_(model, method)
    opt = torch.optim.SGD(model.parameters(), lr=0.3)
    sparsifier = attach(model, opt, method)
    budgets = {row.name: row.kept for row in sparsifier.plan.sparse}
    g = torch.Generator().manual_seed(seed)
    for step in range(1, 8):
        x, t = torch.randn(6, SIZES[0], generator=g).double(), torch.randn(6, SIZES[2], generator=g).double()
        before = {
            name: (c.weight.module.weight.detach().clone(), c.mask)
            for name, c in sparsifier.connections.items()
        }
        opt.zero_grad()
        loss = (model(x) - t).square().mean()
        loss.backward()
        # dense gradients, computed apart from the library
        w0, w2 = (before[n][0].requires_grad_() for n in ("0.weight", "2.weight"))
        again = nn.functional.linear(
            torch.tanh(nn.functional.linear(x, w0, model[0].bias)), w2, model[2].bias
        )
        gradients = dict(zip(before, torch.autograd.grad((again - t).square().mean(), (w0, w2)), strict=True))
        opt.step()
        for name, c in sparsifier.connections.items():
            weight, mask = before[name]
            if step % 2:
                assert torch.equal(c.mask, mask)
                continue
            limit = None if name == "2.weight" else ablate
            want = expected_mask(weight.detach(), mask, gradients[name], 0.4, budgets[name], limit)
            assert torch.equal(c.mask, want), (step, name)
            fan_in = c.mask.sum(1)
            working = fan_in[fan_in > 0]
            assert bool((working == working[0]).all())
            assert 0 <= budgets[name] - c.kept < max(1, len(working))


def test_equal_weights_ablate_nothing():
    model = net()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    sparsifier = attach(model, None, SRigL(sparsity=0.7, steps=10, every=1, init="keep", replace=False))
    model(torch.zeros(2, SIZES[0]).double()).sum().backward()
    sparsifier.step()
    assert all(bool(mask.any(1).all()) for mask in sparsifier.masks.values())


def test_what_it_trains_can_be_condensed():
    method = SRigL(sparsity=0.8, steps=20, every=2, ablate=0.95)
    model = net(3)
    to_sparse_(model, method)
    opt = torch.optim.Adam(model.parameters(), lr=0.1)
    sparsifier = attach(model, opt, method)
    g = torch.Generator().manual_seed(1)
    for _ in range(20):
        opt.zero_grad()
        model(torch.randn(4, SIZES[0], generator=g).double()).square().sum().backward()
        opt.step()
    assert min(int(m.any(1).sum()) for m in sparsifier.masks.values()) < SIZES[1]
    for layer in (model[0], model[2]):
        assert torch.equal(Condensed.of(layer).dense(), layer.weight)


def test_a_stored_run_remembers_what_it_may_have():
    method = SRigL(sparsity=0.8, steps=40, every=2, ablate=0.95)

    def start(resume=None, model=None):
        model = model or net(3)
        if resume is None:
            to_sparse_(model, method)
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, opt, attach(model, opt, method, resume=resume)

    model, opt, sparsifier = start()
    x = torch.randn(4, SIZES[0], generator=torch.Generator().manual_seed(1)).double()
    for _ in range(6):
        opt.zero_grad()
        model(x).square().sum().backward()
        opt.step()
    budget = int(sparsifier.state["budget 0.weight"])
    saved = sparsifier.state_dict()
    sparsifier.detach()
    _, _, resumed = start(resume=saved, model=model)
    assert int(resumed.state["budget 0.weight"]) == budget


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "2:4"}, "constant fan-in"),
        ({"ablate": -1.0}, "ablate"),
        ({"grow": "random"}, "has no scores"),
    ],
)
def test_what_it_cannot_do(options, message):
    with pytest.raises(ValueError, match=message):
        SRigL(**options)
