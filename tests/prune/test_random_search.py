"""Random search: the best of many draws, and one draw where there is no more."""

import pytest
import torch

from openwork import RandomSearch, sparsify_
from openwork.testing import batches, network
from openwork.testing import perceptron as net

F = torch.nn.functional
DATA = batches(2)
SEARCH = RandomSearch(sparsity=0.7, trials=12)


def losses(method, model=None):
    return [loss for _, loss in method.searched(model or net(), DATA, F.cross_entropy)]


def loss_of(model):
    model.eval()
    with torch.no_grad():
        return sum(float(F.cross_entropy(model(x), y)) for x, y in DATA) / len(DATA)


def test_it_keeps_the_draw_of_smallest_loss():
    model = net()
    sparsify_(model, SEARCH, data=DATA)
    assert loss_of(model) == pytest.approx(min(losses(SEARCH)))


def test_more_trials_are_never_worse_and_begin_with_the_same_draws():
    few, many = losses(SEARCH), losses(RandomSearch(sparsity=0.7, trials=40))
    assert many[:12] == few
    assert len(set(many)) == 40
    assert min(many) < min(few[:1])


def test_one_trial_is_a_random_mask_whatever_the_data():
    masks = [
        sparsify_(net(), RandomSearch(sparsity=0.7, trials=1), data=data).masks
        for data in (DATA, batches(3, seed=9))
    ]
    for name, mask in masks[0].items():
        assert torch.equal(mask, masks[1][name])


def test_all_candidates_have_the_planned_counts():
    model = network()
    planned = {row.name: row.kept for row in sparsify_(network(), SEARCH, data=DATA).plan.sparse}
    for _, _ in SEARCH.searched(model, DATA, F.cross_entropy):
        found = {n: int(p.count_nonzero()) for n, p in model.named_parameters() if n in planned}
        assert found == planned


def test_the_model_is_as_it_was_after_a_search():
    model, before = network(), network()
    losses(SEARCH, model)
    for one, other in zip(model.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_whole_units():
    model = net()
    method = RandomSearch(sparsity=0.5, pattern="groups 0", exclude=("3.*",), trials=5)
    mask = sparsify_(model, method, data=DATA).masks["1.weight"]
    assert int(mask.all(1).sum()) == 8
    assert int(mask.any(1).sum()) == 8


def test_what_cannot_be():
    with pytest.raises(ValueError, match="at least one trial"):
        RandomSearch(trials=0)
    with pytest.raises(ValueError, match="give data"):
        sparsify_(net(), SEARCH)
