"""Fine-tuning that loses no zero and changes nothing else."""

import copy

import torch

from openwork.prune.magnitude import Magnitude
from openwork.pruner import sparsify_
from openwork.sparsifier import attach
from openwork.testing import batches, network, step
from openwork.train.keep_zeros import KeepZeros


def test_every_zero_is_kept_and_every_other_weight_trained():
    model = network()
    pruned = sparsify_(model, Magnitude(sparsity=0.7))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.2)
    sparsifier = attach(model, optimizer, KeepZeros())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(m, pruned.masks[n]) for n, m in sparsifier.masks.items())
    for batch in batches(5):
        step(model, optimizer, batch)
    for name, mask in pruned.masks.items():
        now = model.state_dict()[name]
        assert not now[~mask].any()
        assert bool((now[mask] != before[name][mask]).all())


def test_sparsity_allocation_and_pattern_play_no_part():
    model = network()
    with torch.no_grad():
        model[4].weight[3] = 0.0
    found = [
        attach(copy.deepcopy(model), None, method).masks["4.weight"]
        for method in (
            KeepZeros(),
            KeepZeros(sparsity=0.1, allocation="uniform", pattern="2:4"),
            KeepZeros(kept=3),
        )
    ]
    assert all(torch.equal(mask, model[4].weight != 0) for mask in found)


def test_a_layer_of_zeros_stays_one():
    model = network()
    with torch.no_grad():
        model[4].weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = attach(model, optimizer, KeepZeros())
    for batch in batches(3):
        step(model, optimizer, batch)
    assert not model[4].weight.any()
    assert sparsifier.connections["4.weight"].kept == 0
