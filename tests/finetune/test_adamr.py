"""AdamR decays towards where fine-tuning began, steadied by Adam's second moments, and goes on with the same bits."""

import pytest
import torch

from openwork import AdamR, KeepZeros, attach, regularize
from openwork.testing import batches, check_method, network
from openwork.testing.suite import SAID
from tests.regularized import Regularized, require_same_bits_after_stops


def test_a_value_with_a_page():
    check_method(AdamR, SAID)


class Run(Regularized):
    def __init__(self, method, resume=None, make=torch.optim.AdamW, **options):
        model = network()
        groups = [
            {"params": list(model[:4].parameters()), "lr": 0.01},
            {"params": list(model[4:].parameters())},
        ]
        optimizer = make(groups, lr=0.03, **({"weight_decay": 0.0} | options))
        super().__init__(model, optimizer, regularize(model, optimizer, method, resume=resume), batches(12))

    def distance(self):
        pairs = zip(self.model.parameters(), network().parameters(), strict=True)
        return float(torch.cat([(p - q).flatten() for p, q in pairs]).detach().norm())


def test_without_decay_it_is_adam():
    run, plain = Run(AdamR(decay=0.0)).learn(6), Run(AdamR(decay=0.0))
    plain.regularizer.detach()
    plain.learn(6)
    for p, q in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_pull_is_that_of_the_formula(norm):
    run, base = Run(AdamR(decay=0.02, norm=norm)).learn(4), dict(network().named_parameters())
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    moments = [run.optimizer.state[p]["exp_avg_sq"] for p in run.model.parameters()]
    count = sum(m.numel() for m in moments)
    mean = sum(float(m.sum()) for m in moments) / count / (1 - 0.999**4)
    for p in run.model.parameters():
        p.grad = None  # so that the optimizer itself moves nothing
    run.optimizer.step()
    for i, (name, p) in enumerate(run.model.named_parameters()):
        rate = 0.01 if i < 4 else 0.03
        change = before[name] - base[name]
        pull = change.sign() if norm == "l1" else change
        torch.testing.assert_close(p.detach(), (before[name] - rate * 0.02 / mean**0.5 * pull).detach())


def test_more_decay_stays_nearer():
    distances = [Run(AdamR(decay=d)).learn(12).distance() for d in (0.0, 0.01, 0.1, 1.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.7 * distances[0]


def test_a_run_goes_on_with_the_same_bits():
    method = AdamR(decay=0.05)
    require_same_bits_after_stops(lambda resume=None: Run(method, resume=resume), 10, (1, 6))


def test_zeros_are_kept_by_what_keeps_zeros():
    run = Run(AdamR(decay=0.1))
    with torch.no_grad():
        run.model[4].weight.view(-1)[::2] = 0.0
    attach(run.model, run.optimizer, KeepZeros())
    run.learn(5)
    assert not run.model[4].weight.view(-1)[::2].any()
    assert run.model[4].weight.view(-1)[1::2].all()


def test_refusals():
    with pytest.raises(ValueError, match="SGD keeps none"):
        Run(AdamR(), make=torch.optim.SGD).learn(2)
    for wrong in ({"decay": -1.0}, {"norm": "l3"}):
        with pytest.raises(ValueError, match="decay is at least 0 and norm l2 or l1"):
            AdamR(**wrong)
