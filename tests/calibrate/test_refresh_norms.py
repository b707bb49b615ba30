"""Batch norms learn what the pruned network looks like."""

import copy

import pytest
import torch
from torch import nn

import openwork as ow


def net(**options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8, **options), nn.ReLU(),
        nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6, **options), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4),
    )  # fmt: skip
    with torch.no_grad():
        model.train()
        for batch in data(20):
            model(batch)
    return model.eval()


def data(count=4, size=12):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(size, 2, 7, 7, generator=g) + 0.5 for _ in range(count)]


def test_statistics_are_those_of_the_pruned_network_batch_by_batch():
    model = net()
    found = ow.sparsify_(
        model, [ow.Magnitude(sparsity=0.7, exclude=("7.*",)), ow.RefreshNorms()], data=data()
    )
    assert found.parts["refresh_norms"]["refreshed"] == ["1", "4"]
    assert not model.training
    assert model[1].momentum == 0.1
    x = [model[0](batch) for batch in data()]
    mean = torch.stack([y.mean((0, 2, 3)) for y in x]).mean(0)
    variance = torch.stack([y.var((0, 2, 3)) for y in x]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert int(model[1].num_batches_tracked) == 4
    kept = {name: int(mask.sum()) for name, mask in found.masks.items()}
    assert {n: int((p != 0).sum()) for n, p in model.named_parameters() if n in kept} == kept


def test_a_loss_of_size_is_undone():
    dense, small = net(), net()
    with torch.no_grad():
        small[0].weight *= 0.3
        small[3].weight *= 0.1
        small[3].bias -= 2.0
    for model in (dense, small):
        ow.sparsify_(
            model, [ow.Magnitude(sparsity=0.5, allocation="uniform"), ow.RefreshNorms()], data=data()
        )
    x = data()[0]
    torch.testing.assert_close(small(x), dense(x), atol=1e-2, rtol=1e-2)


def test_after_an_error_nothing_has_changed():
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        ow.sparsify_(
            model, [ow.Magnitude(sparsity=0.5), ow.RefreshNorms()], data=[*data(2), torch.randn(3, 5, 7, 7)]
        )
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model[1].momentum == 0.1


def test_a_model_without_batch_norms_is_said_to_have_none():
    model = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
    found = ow.sparsify_(model, [ow.Magnitude(sparsity=0.5), ow.RefreshNorms()], data=[torch.randn(3, 6)])
    assert found.parts["refresh_norms"] == {"refreshed": []}
    untracked = net(track_running_stats=False)
    found = ow.sparsify_(untracked, [ow.Magnitude(sparsity=0.5), ow.RefreshNorms()], data=data())
    assert found.parts["refresh_norms"] == {"refreshed": []}
