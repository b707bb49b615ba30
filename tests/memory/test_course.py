"""What is followed through a step, by hand for a small network."""

import torch
from torch import nn

from openwork.memory.course import course

FLOAT = 4


def test_moments_of_a_perceptron():
    model = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 4))
    seen = course(model, torch.zeros(1, 10))
    assert seen.saved == FLOAT * (30 + 4)  # what ReLU made, and the outputs
    # In the derivative of ReLU: what it made, the gradient of that and its own gradient, and the outputs.
    assert max(seen.held) == FLOAT * (3 * 30 + 4 + 4)
    assert seen.left(100) == 0
    first, _, last, _ = (seen.gradients[id(p)] for p in model.parameters())
    assert first > last
    # With one example gradients of parameters decide, with many activations.
    sizes = {id(p): p.nbytes for p in model.parameters()}
    assert seen.peak(0, sizes, dense=True) == sum(sizes.values())
    assert seen.peak(10**6, sizes, dense=True) >= 10**6 * max(seen.held)


def test_what_is_observed_stays():
    model = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 4))
    seen = course(model, torch.zeros(1, 10), observed=[model[2]])
    assert seen.left(7) == 7 * FLOAT * (30 + 4)
    assert seen.passed == {id(model[2]): FLOAT * (30 + 4)}


def test_dense_convolutions_reorder_images():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1))
    seen = course(model, torch.zeros(1, 3, 8, 8))
    assert max(seen.reordered) == FLOAT * 64 * (3 + 5)
    assert seen.peak(10, {id(p): 0 for p in model.parameters()}, dense=False) == 10 * max(seen.held)


def test_nothing_is_changed():
    model = nn.Sequential(nn.Linear(10, 30), nn.BatchNorm1d(30), nn.Dropout(), nn.Linear(30, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    numbers = torch.random.get_rng_state()
    course(model, torch.zeros(1, 10))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(numbers, torch.random.get_rng_state())


def test_batches_that_compute_otherwise_are_compared_at_their_extremes():
    class Twofold(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(10, 20)

        def forward(self, x):
            y = self.linear(x)
            return y.relu().exp() if len(x) > 2 else y

    seen = course(Twofold(), torch.zeros(1, 10))
    assert len(seen.held) == 2
    assert seen.peak(3, dict.fromkeys(seen.gradients, 5), dense=True) > 0
