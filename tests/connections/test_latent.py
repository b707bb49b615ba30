"""Latent weights are trained out of sight, and the model looks sparse at all times but inside a step."""

import pytest
import torch
from torch import nn

from openwork import DNW, attach, to_sparse_
from tests.train.runs import Run, net

METHOD = DNW(sparsity=0.7)


def test_the_optimizer_moves_the_dense_weights_with_the_gradient_of_the_sparse_ones():
    run = Run(METHOD, momentum=0.0)
    c = run.sparsifier.connections["2.weight"]
    original = net()[2].weight.detach()
    assert torch.equal(c.latent, original)
    assert torch.equal(c.weight.parameter.detach(), torch.where(c.mask, original, 0))
    run.backward()
    gradient = c.weight.parameter.grad.clone()
    assert gradient[~c.mask].any()
    run.optimizer.step()
    torch.testing.assert_close(c.latent, original - 0.1 * gradient)
    kept = c.latent.abs() >= c.latent.abs().flatten().sort(descending=True).values[c.kept - 1]
    assert torch.equal(c.mask, kept)
    assert torch.equal(c.weight.parameter.detach(), torch.where(kept, c.latent, 0))


def test_the_keys_are_plain_and_detach_leaves_the_sparse_model():
    run = Run(METHOD).step(3)
    assert run.model.state_dict().keys() == net().state_dict().keys()
    masks, weights = run.sparsifier.masks, run.weights
    run.sparsifier.detach()
    for name, mask in masks.items():
        assert torch.equal(run.weights[name], weights[name])
        assert not weights[name][~mask].any()
    parameters = [p.detach().clone() for p in run.model.parameters()]
    run.optimizer.zero_grad()
    run.optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(parameters, run.model.parameters(), strict=True))


def test_what_sleeps_never_changes_and_has_no_state():
    run = Run(METHOD, momentum=0.9).step(2)
    c = run.sparsifier.connections["0.weight"]
    before = c.latent.clone()
    awake = torch.arange(0, c.numel, 3)
    c.sleep(awake)
    run.step(2)
    still = torch.ones(c.numel, dtype=torch.bool)
    still[awake] = False
    assert torch.equal(c.latent.flatten()[still], before.flatten()[still])
    assert not torch.equal(c.latent, before)
    momentum = run.optimizer.state[c.weight.parameter]["momentum_buffer"]
    assert torch.equal(momentum.flatten() == 0, still)
    run.backward()
    assert not c.weight.parameter.grad.flatten()[still].any()


def test_fading_weights_are_seen_in_part():
    run = Run(DNW(sparsity=0.0))
    c = run.sparsifier.connections["2.weight"]
    weak = c.latent < 0.1
    c.fade(weak, 0.25)
    assert torch.equal(c.weight.parameter.detach(), torch.where(weak, 0.25 * c.latent, c.latent))
    again = Run(DNW(sparsity=0.0))
    again.sparsifier.load_state_dict(run.sparsifier.state_dict())
    copy = again.sparsifier.connections["2.weight"]
    assert torch.equal(copy.weight.parameter, c.weight.parameter)
    assert torch.equal(copy.fading(), c.fading())
    c.fade(weak, 1.0)
    assert torch.equal(c.weight.parameter, c.latent)
    assert c.fading() is None


def test_transposed_weights():
    model = nn.Sequential(nn.ConvTranspose1d(5, 3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = attach(model, optimizer, DNW(pattern="1:5", every=1))
    model(torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimizer.step()
    c = sparsifier.connections["0.weight"]
    assert c.pattern.allows(c.mask)
    assert torch.equal(model[0].weight.detach(), torch.where(c.mask.transpose(0, 1), c.latent, 0))


def test_a_closure_may_be_called_once_but_not_twice():
    def train(optimizer_class, **options):
        model = net()
        optimizer = optimizer_class(model.parameters(), lr=0.1, **options)
        attach(model, optimizer, METHOD)
        x = torch.ones(3, 13, dtype=torch.float64)

        def closure():
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    train(torch.optim.SGD)
    with pytest.raises(RuntimeError, match="several times a step"):
        train(torch.optim.LBFGS, max_iter=4)


def test_what_cannot_be_is_said_before_anything_changes():
    model = net()
    to_sparse_(model, METHOD)
    with pytest.raises(ValueError, match=r"0\.weight.*hold only their kept connections.*to_dense_"):
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), METHOD)
    model = net()
    with pytest.raises(ValueError, match="no optimizer"):
        attach(model, None, METHOD)
    two = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.SGD(model[2].parameters(), lr=0.1)]
    with pytest.raises(ValueError, match=r"another one trains 2\.weight"):
        attach(model, two, METHOD)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), net().parameters(), strict=True))


def test_latent_weights_that_are_nan_skip_the_update():
    run = Run(METHOD).step(1)
    masks = run.sparsifier.masks
    run.backward()
    c = run.sparsifier.connections["2.weight"]
    c.weight.parameter.grad[~c.mask] = torch.nan
    with pytest.warns(UserWarning, match="latent weights of 2.weight hold NaN"):
        run.optimizer.step()
    assert all(torch.equal(mask, masks[name]) for name, mask in run.sparsifier.masks.items())
    assert run.weights["2.weight"].isfinite().all()
