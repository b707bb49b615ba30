"""Everything that people do while they train works on layers that hold only their kept connections."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from openwork import SET, RigL, SparseLinear, attach, to_sparse_
from openwork.sparsifier import SparsifierWarning

METHOD = SET(sparsity=0.7, allocation="uniform", steps=12, every=4)

OPTIMIZERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
}
MATRICES_ONLY = {"Muon"}  # orthogonalises a matrix, and a vector of kept values is none
SPARSE_GRADIENTS_ONLY = {"SparseAdam"}  # takes gradients in torch.sparse form, dense layers give none either


def network(dtype=torch.float32, seed=0):
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4)).to(
        dtype
    )
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / 3)
    return model


def stored(dtype=torch.float32, method=METHOD):
    model = network(dtype)
    to_sparse_(model, method)
    return model


def data(dtype=torch.float32):
    g = torch.Generator().manual_seed(7)
    x = torch.randn(32, 12, generator=g, dtype=torch.float64)
    return x.to(dtype), (x[:, :4] + x[:, 4:8]).argmax(1)


def train(model, optimizer, steps=12, after=lambda loss: None):
    x, y = data(next(model.parameters()).dtype)
    losses = []
    for _ in range(steps):

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x).float(), y)
            loss.backward()
            after(loss)
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - MATRICES_ONLY - SPARSE_GRADIENTS_ONLY))
def test_every_optimizer_trains_kept_values(name):
    """Its state has the size of what is kept, and moves with the topology."""
    options = {"lr": 0.05 if name in ("SGD", "ASGD", "Rprop", "Adagrad", "LBFGS") else 0.01}
    model = stored()
    optimizer = OPTIMIZERS[name](model.parameters(), **options)
    sparsifier = attach(model, optimizer, METHOD)
    before = sparsifier.masks
    losses = train(model, optimizer)
    assert sparsifier.updates == 2
    assert any(not torch.equal(before[n], m) for n, m in sparsifier.masks.items())
    assert losses[-1] < losses[0]
    for module in (model[0], model[2], model[4]):
        kept = module.weight_values.numel()
        # LBFGS keeps the history of all parameters together, in the state of the first.
        for value in () if name == "LBFGS" else optimizer.state[module.weight_values].values():
            if isinstance(value, torch.Tensor) and value.dim():
                assert value.numel() in (kept, 1)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "NAdam", "Adagrad", "Rprop"])
def test_stored_is_masked_under_elementwise_optimizers(name):
    losses = []
    for make in (network, stored):
        model = make(torch.float64)
        optimizer = OPTIMIZERS[name](model.parameters(), lr=0.01)
        attach(model, optimizer, METHOD)
        losses.append(train(model, optimizer))
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_what_needs_matrices_is_refused():
    model = stored()
    with pytest.raises(ValueError, match="2D parameters"):
        torch.optim.Muon([p for p in model.parameters() if p.dim() < 3])
    masked = network()
    muon = torch.optim.Muon([p for p in masked.parameters() if p.dim() == 2], lr=0.01)
    sparsifier = attach(masked, muon, METHOD)
    train(masked, muon)
    for name, mask in sparsifier.masks.items():
        assert not masked.get_parameter(name)[~mask].any()


def test_an_optimizer_from_before_the_layers_were_stored_is_noticed():
    torch.manual_seed(0)
    model = network()
    early = torch.optim.SGD(model.parameters(), 0.1)
    to_sparse_(model, METHOD)
    with pytest.warns(SparsifierWarning, match="make the optimizer after ow.to_sparse_") as told:
        attach(model, early, METHOD).detach()
    names = [name for name, _ in model.named_parameters() if name.endswith("weight_values")]
    assert len(told) == len(names) > 0
    attach(model, torch.optim.SGD(model.parameters(), 0.1), METHOD)  # and nothing is told


def test_an_average_of_weights_follows_a_fixed_topology():
    model = stored(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    expected = [p.detach().clone() for p in model.parameters()]
    for step in range(5):
        train(model, optimizer, steps=1)
        average.update_parameters(model)
        expected = [
            p.detach().clone() if step == 0 else 0.9 * e + 0.1 * p.detach()
            for e, p in zip(expected, model.parameters(), strict=True)
        ]
    for ours, theirs in zip(average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert torch.equal(average.module[0].weight != 0, model[0].weight != 0)


def test_clipping_and_schedules_see_kept_connections_only():
    results = []
    for make in (network, stored):
        model = make(torch.float64)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        attach(model, optimizer, METHOD)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=13)
        norms = []

        def after(_, model=model, norms=norms, schedule=schedule):
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.05)))
            schedule.step()

        results.append((train(model, optimizer, after=after), norms))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-9)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_precision_of_the_weights(dtype):
    """Autocast lowers what dense kernels gain by; sparse ones gain nothing, so they compute in the precision of their weights and
    take whatever precision comes in.
    """
    layer = SparseLinear(12, 9, sparsity=0.6)
    x = torch.randn(5, 12, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = layer(x)
        from_low = layer(x.to(dtype))
    assert y.dtype == torch.float32
    assert torch.equal(y, layer(x))
    assert from_low.dtype == torch.float32
    torch.testing.assert_close(from_low, layer(x.to(dtype).float()))
    from_low.sum().backward()
    assert layer.weight_values.grad.dtype == x.grad.dtype == torch.float32


def test_training_under_autocast():
    model = stored()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    method = RigL(sparsity=0.7, allocation="uniform", steps=12, every=4, until=1.0)
    sparsifier = attach(model, optimizer, method)
    model.insert(1, nn.Linear(20, 20))  # a dense layer between, which autocast does lower
    optimizer.add_param_group({"params": list(model[1].parameters())})
    x, y = data()
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sparsifier.updates > 0
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    """Gradients and topology updates are those without it."""
    results = []
    method = RigL(sparsity=0.7, allocation="uniform", steps=8, every=2, until=1.0)
    for recompute in (False, True):
        model = stored(torch.float64, method)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier = attach(model, optimizer, method)
        x, y = data(torch.float64)
        x.requires_grad_()
        for _ in range(8):
            optimizer.zero_grad()
            if recompute:
                hidden = checkpoint(model[:4], x, use_reentrant=reentrant)
            else:
                hidden = model[:4](x)
            F.cross_entropy(model[4](hidden), y).backward()
            optimizer.step()
        results.append((copy.deepcopy(model.state_dict()), sparsifier.masks))
    for ours, theirs in zip(results[1][0].values(), results[0][0].values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(results[0][1][n], m) for n, m in results[1][1].items())


def test_a_compiled_model_trains_through_topology_updates():
    losses = []
    for compiled in (False, True):
        model = stored()
        run = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = attach(run, optimizer, METHOD)
        losses.append(train(run, optimizer))
        assert sparsifier.updates == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_gradient_of_a_gradient():
    layer = SparseLinear(6, 5, sparsity=0.4)
    x = torch.randn(3, 6, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).tanh().square().sum(), x, create_graph=True)
    dx.square().sum().backward()
    dense = layer.to_linear()
    again = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(dense(again).tanh().square().sum(), again, create_graph=True)
    expected.square().sum().backward()
    positions = layer.topology.positions()
    torch.testing.assert_close(
        layer.weight_values.grad, dense.weight.grad.flatten()[positions], rtol=1e-4, atol=1e-5
    )
