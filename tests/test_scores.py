"""Scores against their formulas, and models that are left exactly as they were."""

import copy

import pytest
import torch
from torch import nn

from openwork.scores import grasp, magnitude, run, saliency, snip, synflow, uniform, untouched

F = nn.functional


def drawn(model, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    return model.double()


def mlp(bias=True):
    return drawn(
        nn.Sequential(
            nn.Linear(5, 7, bias=bias),
            nn.ReLU(),
            nn.Linear(7, 4, bias=bias),
            nn.ReLU(),
            nn.Linear(4, 3, bias=bias),
        )
    )


def data(n=9, seed=1, classes=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=g).double(), torch.randint(classes, (n,), generator=g)


def weights(model):
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def test_scores_of_one_tensor():
    w, g = torch.tensor([-3.0, 2.0, 0.0]), torch.tensor([1.0, -4.0, 9.0])
    assert magnitude(w).tolist() == [3, 2, 0]
    assert saliency(w, g).tolist() == [3, 8, 0]
    draw = uniform(w, torch.Generator().manual_seed(0))
    assert torch.equal(draw, uniform(w, torch.Generator().manual_seed(0)))
    assert bool(((draw >= 0) & (draw < 1)).all())


def test_snip_is_weight_times_gradient():
    model, (x, y) = mlp(), data()
    twin = copy.deepcopy(model)
    (F.cross_entropy(twin(x), y) + F.cross_entropy(twin(2 * x), y)).backward()
    scores = snip(model, weights(model), [(x, y), (2 * x, y)], F.cross_entropy)
    for name, p in weights(twin).items():
        torch.testing.assert_close(scores[name], (p.detach() * p.grad).abs(), rtol=1e-12, atol=0)


def test_snip_scores_frozen_weights_too():
    model, batch = mlp(), data()
    for p in model.parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        scores = snip(model, weights(model), [batch], F.cross_entropy)
    assert all(bool((s > 0).any()) for s in scores.values())
    assert not any(p.requires_grad for p in model.parameters())


def test_grasp_of_a_quadratic():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(6, 6, generator=g, dtype=torch.float64)
    a = a @ a.T
    model = drawn(nn.Linear(1, 6, bias=False), 1)  # the output for an input of one is the weight itself
    w = model.weight.detach().flatten()

    def loss(output, _):
        return 0.5 * output.flatten() @ a @ output.flatten()

    scores = grasp(model, {"w": model.weight}, [(torch.ones(1, 1).double(), None)], loss, temperature=1.0)
    torch.testing.assert_close(scores["w"].flatten(), w * (a @ (a @ w)), rtol=1e-10, atol=0)
    hot = grasp(model, {"w": model.weight}, [(torch.ones(1, 1).double(), None)], loss, temperature=10.0)
    torch.testing.assert_close(hot["w"], scores["w"] / 10**4, rtol=1e-10, atol=0)


def test_grasp_is_the_slope_of_the_gradient_norm():
    """W * (H g) is half of what |g|^2 gains when w grows by a small factor."""
    model, (x, y) = mlp(), data()
    scores = grasp(model, weights(model), [(x, y)], F.cross_entropy, temperature=2.0)

    def flow():
        g = torch.autograd.grad(F.cross_entropy(model(x) / 2.0, y), list(weights(model).values()))
        return sum((t * t).sum() for t in g).item()

    weight = model[2].weight
    for place in ((0, 3), (3, 6), (2, 1)):
        old, step = weight[place].item(), 1e-5
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] = old * (1 + sign * step)
            ends.append(flow())
        with torch.no_grad():
            weight[place] = old
        slope = (ends[0] - ends[1]) / (2 * step)
        assert scores["2.weight"][place].item() == pytest.approx(slope / 2, rel=1e-4, abs=1e-10)


def test_grasp_sums_over_batches_before_multiplying():
    model, (x, y) = mlp(), data(8)
    whole = grasp(model, weights(model), [(x, y)], lambda o, t: F.cross_entropy(o, t, reduction="sum"))
    halves = grasp(
        model,
        weights(model),
        [(x[:3], y[:3]), (x[3:], y[3:])],
        lambda o, t: F.cross_entropy(o, t, reduction="sum"),
    )
    for name in whole:
        torch.testing.assert_close(halves[name], whole[name], rtol=1e-8, atol=1e-14)


def test_synaptic_flow_is_conserved():
    model = mlp(bias=False)
    scores = synflow(model, weights(model), data()[0])
    ones = torch.ones(1, 5).double()
    for p in (model[0].weight, model[2].weight, model[4].weight):
        ones = ones @ p.detach().abs().T
    sums = [s.sum().item() for s in scores.values()]
    assert sums == pytest.approx([ones.sum().item()] * 3, rel=1e-12)
    # through a single weight flows what enters its input times what leaves its output
    into = (torch.ones(5).double() @ model[0].weight.detach().abs().T)[3]
    out = (torch.ones(3).double() @ model[4].weight.detach().abs())[2]
    through = into * model[2].weight[2, 3].detach().abs() * out
    assert scores["2.weight"][2, 3].item() == pytest.approx(through.item(), rel=1e-12)


def test_synflow_needs_no_values_and_survives_norms_and_float32():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    drawn(model).float()
    model[1].running_mean.fill_(-3.0)
    names = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    scores = synflow(model, names, torch.full((6, 2, 5, 5), torch.nan))
    assert all(bool(s.isfinite().all()) and bool((s > 0).any()) for s in scores.values())
    scale = [nn.Linear(9, 9) for _ in range(60)]  # 9 ** 60 leaves float32
    deep = nn.Sequential(*scale)
    assert all(bool(s.isfinite().all()) for s in synflow(deep, weights(deep), torch.ones(1, 9)).values())


def test_synflow_takes_token_ids_as_they_are():
    model = drawn(nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 2)))
    scores = synflow(model, {"1.weight": model[1].weight}, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert scores["1.weight"].shape == (2, 4)


class Moody(nn.Module):
    """Dropout, batch norm, a counter: everything a forward pass may change."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
        self.body[2].eval()
        self.body[0].bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.body(x)


@pytest.mark.parametrize("score", ["snip", "grasp", "synflow"])
def test_the_model_is_left_as_it_was(score):
    model = drawn(Moody())
    x, y = data()
    F.cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = {n: (p.grad, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    names = weights(model)
    if score == "synflow":
        synflow(model, names, x)
    else:
        {"snip": snip, "grasp": grasp}[score](model, names, [(x, y)], F.cross_entropy)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert wanted == [p.requires_grad for p in model.parameters()]
    for name, p in model.named_parameters():
        tensor, values = gradients[name]
        assert p.grad is tensor
        assert values is None or torch.equal(p.grad, values)


def test_untouched_restores_after_an_error():
    model = drawn(Moody())

    def break_off():
        with untouched(model):
            model.eval()
            model.calls += 5
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        break_off()
    assert model.training
    assert model.calls == 0


@pytest.mark.parametrize("score", [snip, grasp])
def test_no_batch_is_an_error(score):
    model = mlp()
    with pytest.raises(ValueError, match="holds no batch"):
        score(model, weights(model), [], F.cross_entropy)


def test_inputs_may_be_positional_or_by_name():
    class Sum(nn.Module):
        def forward(self, a, b, sign=1):
            return a + sign * b

    assert run(Sum(), (1, 2)) == 3
    assert run(Sum(), {"a": 1, "b": 2, "sign": -1}) == -1
