"""A short training run with a regularizer, and the proof that it can be interrupted anywhere."""

import io

import torch
from torch import nn


class Regularized:
    """What runs have in common; each makes its own model, optimizer and regularizer.

    Args:
        data: the batches it learns from, in order.
    """

    def __init__(self, model, optimizer, regularizer, data):
        self.model, self.optimizer, self.regularizer, self.data = model, optimizer, regularizer, data

    def learn(self, steps, first=0):
        for x, y in self.data[first : first + steps]:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
        return self


def require_same_bits_after_stops(make, steps, stops):
    """Interrupt ``make(resume=None)`` after each of ``stops`` steps, save, load, go on: the bits are those of a straight run."""
    straight = make().learn(steps)
    for stop in stops:
        run = make().learn(stop)
        file = io.BytesIO()
        torch.save([run.model.state_dict(), run.optimizer.state_dict(), run.regularizer.state_dict()], file)
        file.seek(0)
        model, optimizer, state = torch.load(file, weights_only=True)
        again = make(resume=state)
        again.model.load_state_dict(model)
        again.optimizer.load_state_dict(optimizer)
        again.learn(steps - stop, stop)
        for name, t in straight.model.state_dict().items():
            assert torch.equal(t, again.model.state_dict()[name]), (name, stop)
