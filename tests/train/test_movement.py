"""Movement pruning keeps what moves away from zero; its soft form learns the split; PST learns few numbers."""

import dataclasses

import pytest
import torch
from torch import nn

from openwork import GMP, PST, Movement, SoftMovement, attach
from openwork.scores import movement
from openwork.testing import check_method
from tests.train.runs import Run, net

METHOD = Movement(sparsity=0.8, steps=40)


@pytest.mark.parametrize("options", [{"adaptive": False, "allocation": "global"}, {"pattern": "1:3"}])
def test_conformance(options):
    check_method(Movement, **options)


@pytest.mark.parametrize("options", [{"penalty": 0.0}, {"tau": 0.4, "penalty": 1e4}])
def test_conformance_of_the_soft_form(options):
    check_method(SoftMovement, **options)


def test_conformance_of_the_one_with_few_numbers():
    check_method(PST, rank=2, score_rank=3)


def test_scores_add_up_what_moves_away_from_zero():
    run = Run(dataclasses.replace(METHOD, adaptive=False, rate=0.5))
    c = run.sparsifier.connections["2.weight"]
    expected = torch.zeros_like(c.latent)
    for _ in range(12):
        run.backward()
        expected += 0.5 * movement(c.latent, c.weight.parameter.grad)
        run.optimizer.step()
    torch.testing.assert_close(run.sparsifier.state["score 2.weight"], expected, rtol=1e-12, atol=1e-14)


def test_adam_learns_the_scores_as_torch_would():
    run = Run(METHOD)
    c = run.sparsifier.connections["0.weight"]
    score = nn.Parameter(torch.zeros_like(c.latent))
    adam = torch.optim.Adam([score], lr=1e-2)
    for _ in range(9):
        run.backward()
        score.grad = c.latent * c.weight.parameter.grad
        adam.step()
        run.optimizer.step()
    torch.testing.assert_close(run.sparsifier.state["score 0.weight"], score.detach(), rtol=1e-9, atol=1e-12)


def test_the_gradient_passes_the_mask_straight_through():
    run = Run(METHOD).step(20)
    c = run.sparsifier.connections["2.weight"]
    assert c.inactive.any()
    before = run.sparsifier.state["score 2.weight"].clone()
    run.step()
    moved = run.sparsifier.state["score 2.weight"] != before
    assert moved[c.inactive].float().mean() > 0.9  # scores of pruned weights go on learning


def test_pruned_weights_keep_their_value_and_may_come_back():
    run = Run(METHOD, momentum=0.0)
    came_back = 0
    for _ in range(40):
        masks = run.sparsifier.masks
        latent = {name: c.latent.clone() for name, c in run.sparsifier.connections.items()}
        run.step()
        for name, c in run.sparsifier.connections.items():
            assert torch.equal(c.latent[~masks[name]], latent[name][~masks[name]])
            back = c.mask & ~masks[name]
            came_back += int(back.sum())
            assert torch.equal(run.weights[name][back], latent[name][back])
    assert came_back


def test_the_schedule_is_cubic_and_the_end_exact():
    run = Run(METHOD)
    size = sum(c.numel for c in run.sparsifier.connections.values())
    for step in range(1, 41):
        run.step()
        progress = min(max(0.0, (step - 4) / (28 - 4)), 1.0)
        kept = size if step < 4 else round(size * (1 - 0.8 * (1 - (1 - progress) ** 3)))
        assert run.sparsifier.kept == kept
    assert run.sparsifier.kept == run.sparsifier.plan.kept == round(0.2 * size)


def test_the_best_scores_stay():
    run = Run(dataclasses.replace(METHOD, allocation="global")).step(40)
    everything = torch.cat([s.flatten() for n, s in run.sparsifier.state.items() if n.startswith("score")])
    least = everything.sort(descending=True).values[run.sparsifier.plan.kept - 1]
    for name, mask in run.sparsifier.masks.items():
        assert torch.equal(mask, run.sparsifier.state[f"score {name}"] >= least)


@pytest.mark.parametrize("cls", [Movement, SoftMovement])
def test_dense_it_is_fine_tuning(cls):
    ((dense, simpler),) = cls(steps=20).limits()
    assert type(simpler) is GMP
    plain = net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    run = Run(dense)
    for _ in range(20):
        run.backward()
        for p, q in zip(plain.parameters(), run.model.parameters(), strict=True):
            p.grad = q.grad.clone()
        run.optimizer.step()
        optimizer.step()
    for name, p in run.weights.items():
        assert torch.equal(p, plain.get_parameter(name))


def test_a_frozen_parameter_that_is_included_keeps_its_largest():
    model = net()
    model[2].weight.requires_grad_(False)
    run = Run(dataclasses.replace(METHOD, include=("2.weight",)), model).step(40)
    c = run.sparsifier.connections["2.weight"]
    assert torch.equal(c.positions, c.strongest_latent(c.kept))


def test_soft_thresholds_find_a_split_of_their_own_before_the_count_is_made_exact():
    method = SoftMovement(sparsity=0.8, steps=60, penalty=3.0, rate=0.1, tau=0.45)
    run = Run(method)
    for step in range(1, 42):
        run.step()
        assert run.sparsifier.sparsity == 0.0
        if step >= 6:
            for name, c in run.sparsifier.connections.items():
                seen = run.sparsifier.state[f"score {name}"].sigmoid() > 0.45
                assert torch.equal(run.weights[name] != 0, seen)
                assert torch.equal(run.weights[name][seen], c.latent[seen])
    densities = method.measures(run.sparsifier)
    assert len(set(densities.values())) == 3
    assert min(densities.values()) < 0.6
    run.step()
    assert run.sparsifier.kept == run.sparsifier.plan.kept
    for name, c in run.sparsifier.connections.items():
        assert torch.equal(run.weights[name], c.latent * c.mask)


def test_a_weight_that_is_not_seen_does_not_move_but_its_score_pays():
    run = Run(SoftMovement(steps=60, penalty=1e3, rate=0.3, tau=0.4), momentum=0.0).step(9)
    c = run.sparsifier.connections["2.weight"]
    unseen = c.fading() == 0
    assert unseen.any()
    latent, scores = c.latent.clone(), run.sparsifier.state["score 2.weight"].clone()
    run.step()
    assert torch.equal(c.latent[unseen], latent[unseen])
    assert (run.sparsifier.state["score 2.weight"][unseen] < scores[unseen]).float().mean() > 0.9


PARTS = PST(sparsity=0.8, steps=40, rank=3, score_rank=2, pace=1e-2)


def test_at_first_it_is_magnitude_pruning():
    run = Run(dataclasses.replace(PARTS, begin=0.0, until=0.0, pace=0.0))
    start = run.weights
    for c in run.sparsifier.connections.values():
        torch.testing.assert_close(PARTS.scores(run.sparsifier, c), start[c.name].abs())
    once = Run(dataclasses.replace(PARTS, begin=0.0, until=0.0, rate=1e-12, pace=0.0)).step()
    for c in once.sparsifier.connections.values():
        assert torch.equal(c.positions, c.strongest_latent(c.kept))


def test_slopes_are_those_of_autograd():
    method = dataclasses.replace(
        PARTS, change=0.7, low_rank=1.3, stripes=0.4, adaptive=False, rate=1.0, pace=1e-3
    )
    run = Run(method, lr=0.2).step(15)
    c = run.sparsifier.connections["2.weight"]
    base = run.sparsifier.state["W0 2.weight"]
    run.optimizer.param_groups[0]["lr"] = 0.1  # the schedule is at a half
    before = [f.clone().requires_grad_() for f in method.factors(run.sparsifier, c)]
    u, v, a, b, rows, columns = before
    run.backward()
    gradient, mask = c.weight.parameter.grad.clone(), c.mask
    theta = base + 0.7 * u @ v
    score = theta.abs() + 1.3 * a @ b + 0.4 * (rows + columns)
    through = mask.double() + score - score.detach()  # the mask, whose gradient is that of the scores
    wanted = torch.autograd.grad((through * theta * gradient).sum(), before)
    run.optimizer.step()
    rates = [5e-4, 5e-4, 1, 1, 1, 1]
    for old, new, slope, rate in zip(before, method.factors(run.sparsifier, c), wanted, rates, strict=True):
        torch.testing.assert_close(new, old.detach() - rate * slope, rtol=1e-9, atol=1e-12)
    u, v, *_ = method.factors(run.sparsifier, c)
    torch.testing.assert_close(run.weights["2.weight"], (base + 0.7 * u @ v) * c.mask)


def test_few_numbers_are_trained_and_the_optimizer_holds_none_of_the_weights():
    run = Run(PARTS).step(10)
    for row in run.sparsifier.plan.sparse:
        c = run.sparsifier.connections[row.name]
        out, inputs = row.shape
        trained = sum(f.numel() for f in PARTS.factors(run.sparsifier, c))
        assert trained == (3 + 2) * (out + inputs) + out + inputs
        assert not run.optimizer.state.get(c.weight.parameter)
    assert all(run.optimizer.state[m.bias] for m in run.model if isinstance(m, nn.Linear))


def test_without_factors_it_is_magnitude_pruning_to_the_end():
    run = Run(dataclasses.replace(PARTS, low_rank=0.0, stripes=0.0, pace=0.0)).step(40)
    for c in run.sparsifier.connections.values():
        assert torch.equal(c.latent, run.sparsifier.state[f"W0 {c.name}"])
        assert torch.equal(c.positions, c.strongest_latent(c.kept))


def test_stripes_alone_remove_whole_rows():
    method = dataclasses.replace(PARTS, low_rank=0.0, stripes=1e6)
    run = Run(method).step(10)
    for name, tensor in run.sparsifier.state.items():
        if name.startswith("C "):
            tensor.zero_()
    for name, positions in method.chosen(run.sparsifier, 1.0).items():
        out, inputs = run.sparsifier.connections[name].weight.shape
        whole = torch.bincount(positions // inputs, minlength=out)
        assert int(((whole > 0) & (whole < inputs)).sum()) <= 1


def test_detached_it_is_a_plain_sparse_model():
    run = Run(PARTS).step(40)
    x = torch.randn(5, 13, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = run.model(x)
    run.sparsifier.detach()
    assert torch.equal(run.model(x), y)
    assert set(run.model.state_dict()) == set(net().state_dict())
    assert all(
        not p[~m].any() for p, m in zip(run.weights.values(), run.sparsifier.masks.values(), strict=True)
    )


def test_stored_layers_are_refused():
    with pytest.raises(ValueError, match="hold only their kept connections"):
        Run(PARTS, stored=True)
    model = net()
    with pytest.raises(ValueError, match="there is no optimizer"):
        attach(model, None, METHOD)


def test_impossible_options():
    with pytest.raises(ValueError, match="rate is positive"):
        Movement(rate=0.0)
    with pytest.raises(ValueError, match="tau is a fraction"):
        SoftMovement(tau=1.5)
    with pytest.raises(ValueError, match="penalty is at least 0"):
        SoftMovement(penalty=-1.0)
    with pytest.raises(ValueError, match="ranks are at least 1"):
        PST(rank=0)


def test_the_pace_follows_the_schedule_from_its_beginning():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 * step)  # begins at nothing
    sparsifier = attach(model, optimizer, PARTS)
    assert float(sparsifier.state["lr 0.weight"]) == 0.4
