"""Progressive gradient flow fades pruned weights out, or narrows the pattern, and ends at N:M."""

import dataclasses

import pytest
import torch

from openwork import NM, PGF, plan
from openwork.testing import check_method
from tests.train.runs import Run, net

METHOD = PGF(pattern="1:4", steps=40)


def model():
    return net((32, 24, 16, 5))


@pytest.mark.parametrize("flow", ["exponential", "linear", "stepwise", "geometric"])
def test_conformance(flow):
    check_method(PGF, flow=flow)


def test_more_conformance():
    check_method(PGF, every=1, scaled=True)


@pytest.mark.parametrize("flow", ["exponential", "linear"])
def test_pruned_weights_fade(flow):
    method = dataclasses.replace(METHOD, flow=flow)
    run = Run(method, model())
    for t in range(1, 41):
        run.step()
        for c in run.sparsifier.connections.values():
            ranks = c.latent.abs().unflatten(1, (-1, 4)).argsort(-1, descending=True).argsort(-1).flatten(1)
            shown = run.weights[c.name]
            if t < 2:
                assert torch.equal(shown, c.latent)
            elif t < 36:
                beta = 1 - (t - 2) / 34 if flow == "linear" else 0.01 ** ((t - 2) / 34)
                expected = torch.where(ranks == 0, c.latent, beta * c.latent)
                torch.testing.assert_close(shown, expected, rtol=1e-12, atol=0)
                assert c.kept == c.numel
            else:
                assert c.pattern.allows(c.mask)
                assert c.kept == c.numel // 4


def patterns(method):
    return [str(p) for p in method.frames(plan(model(), method).sparse[0])]


def test_the_frames():
    assert patterns(PGF(flow="stepwise", pattern="1:8")) == ["7:8", "4:8", "2:8", "1:8"]
    assert patterns(PGF(flow="stepwise", pattern="2:4")) == ["3:4", "2:4"]
    assert patterns(PGF(flow="stepwise", pattern="1:2")) == ["1:2"]
    assert patterns(PGF(flow="geometric", pattern="1:4")) == ["8:32", "4:16", "2:8", "1:4"]
    assert patterns(PGF(flow="geometric", pattern="1:8")) == ["4:32", "2:16", "1:8"]


@pytest.mark.parametrize("flow", ["stepwise", "geometric"])
def test_the_structure_follows_its_frames(flow):
    method = PGF(flow=flow, pattern="1:4", steps=40, dense=0.1, finetune=0.2)
    run, seen = Run(method, model()), []
    row = run.sparsifier.plan.sparse[0]
    for t in range(1, 41):
        run.step()
        c = run.sparsifier.connections[row.name]
        if t < 4:
            assert c.kept == c.numel
            continue
        frames = method.frames(row)
        frame = frames[min(int((t - 4) / 28 * len(frames)), len(frames) - 1)]
        assert frame.allows(c.mask)
        assert torch.equal(run.weights[row.name], torch.where(c.mask, c.latent, 0))
        seen.append(c.kept)
    assert sorted(seen, reverse=True) == seen
    assert seen[-1] == row.kept
    assert (len(set(seen)) == 1) == (flow == "geometric")


def test_fine_tuning_trains_what_is_left_alone():
    run = Run(METHOD, model()).step(36)
    masks = run.sparsifier.masks
    latent = {n: c.latent.clone() for n, c in run.sparsifier.connections.items()}
    run.step(4)
    for n, c in run.sparsifier.connections.items():
        assert torch.equal(c.mask, masks[n])
        assert NM(1, 4).allows(c.mask)
        assert torch.equal(c.latent[~c.mask], latent[n][~c.mask])
        assert (c.latent[c.mask] != latent[n][c.mask]).all()


def test_gradients_may_be_scaled_by_what_is_seen():
    plain, scaled = (Run(dataclasses.replace(METHOD, scaled=s), model(), momentum=0.0) for s in (False, True))
    plain.step(2), scaled.step(2)
    for run in (plain, scaled):
        run.step()  # at step 2 beta is still 1
        run.backward()
    for name, c in scaled.sparsifier.connections.items():
        seen, gradient = c.fading(), c.weight.parameter.grad.clone()
        assert sorted(set(seen.flatten().tolist())) == [0.01 ** (1 / 34), 1.0]
        torch.testing.assert_close(gradient, plain.sparsifier.connections[name].weight.parameter.grad)
        before = c.latent.clone()
        if name == "4.weight":
            scaled.optimizer.step()
            torch.testing.assert_close(c.latent, before - 0.1 * gradient * seen)


def test_without_a_decay_it_is_one_shot_pruning():
    ((setting, simpler),) = METHOD.limits()
    assert Run(setting, model()).step(40).losses == Run(simpler, model()).step(40).losses


def test_impossible_options():
    with pytest.raises(ValueError, match="unknown flow 'sudden'"):
        PGF(flow="sudden")
    with pytest.raises(ValueError, match="n:m patterns"):
        PGF(flow="geometric", pattern="unstructured")
    with pytest.raises(ValueError, match="finetune"):
        PGF(finetune=2.0)
