"""Two real processes against one with the double batch, in float64."""

import contextlib
import copy
import os
import socket

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from openwork import CSR, DNW, GMP, GSE, SET, SNFS, RigL, SparseLinear, SRigL, attach, processes, to_sparse_
from openwork.layouts import linear

STEPS = 9
METHODS = {
    "rigl": RigL(sparsity=0.7, allocation="uniform", every=2, steps=STEPS, until=1.0),
    "set": SET(sparsity=0.7, allocation="uniform", every=2, steps=STEPS),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}
SHARDED = METHODS | {
    "gse": GSE(sparsity=0.7, allocation="uniform", every=2, steps=STEPS, until=1.0),
    "snfs": SNFS(sparsity=0.7, allocation="uniform", every=2, steps=STEPS),
    "srigl": SRigL(sparsity=0.7, allocation="uniform", every=2, steps=STEPS, until=1.0),
    "gmp": GMP(sparsity=0.7, steps=STEPS),
}
RUNS = [
    (storage, method, optimizer)
    for storage in ("masked", "stored")
    for method, optimizer in (("rigl", "sgd"), ("set", "adam"))
]


def network(seed=0):
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(7, 13), nn.Tanh(), nn.Linear(13, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / 2)
    return model


def data():
    g = torch.Generator().manual_seed(3)
    return [
        (torch.randn(8, 7, generator=g, dtype=torch.float64), torch.randint(3, (8,), generator=g))
        for _ in range(STEPS)
    ]


def train(storage, method, optimizer, rank=None, accumulate=False):
    """Losses, final dense weights and whether gradients had the size of the kept connections."""
    model, method = network(), METHODS[method]
    if storage == "stored":
        to_sparse_(model, method)
    wrapped = model if rank is None else DistributedDataParallel(model)
    opt = OPTIMIZERS[optimizer](wrapped.parameters())
    sparsifier = attach(wrapped, opt, method)
    losses = []
    for x, y in data():
        opt.zero_grad()
        mine = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
        parts = torch.arange(8)[mine].chunk(2 if accumulate else 1)
        total = 0.0
        for i, part in enumerate(parts):
            apart = (
                wrapped.no_sync() if accumulate and rank is not None and i == 0 else contextlib.nullcontext()
            )
            with apart:
                loss = F.cross_entropy(wrapped(x[part]), y[part]) / len(parts)
                loss.backward()
            total += loss.item()
        losses.append(total)
        for c in sparsifier.connections.values():
            size = c.kept if storage == "stored" else c.numel
            assert c.weight.parameter.grad.numel() == c.weight.parameter.numel() == size
        opt.step()
    assert sparsifier.updates == 4
    weights = [module.weight.detach() for module in model if isinstance(module, nn.Linear)]
    return losses, weights, [c.positions for c in sparsifier.connections.values()]


def prepared_again():
    """How often the kernels' indices are made anew while buffers are broadcast before every forward pass."""
    model = nn.Sequential(SparseLinear(30, 20, sparsity=0.5, generator=torch.Generator().manual_seed(0)))
    made, prepare = [], linear.prepare
    linear.prepare = lambda *args: made.append(1) or prepare(*args)
    try:
        wrapped = DistributedDataParallel(model)  # broadcast_buffers=True
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = attach(wrapped, opt, SET(steps=10, every=4))
        for _ in range(10):
            opt.zero_grad()
            wrapped(torch.ones(2, 30)).sum().backward()
            opt.step()
    finally:
        linear.prepare = prepare
    return len(made), sparsifier.updates


def same_from_different_seeds(rank):
    """A topology that each process has drawn for itself is replaced by that of the first."""
    model = nn.Sequential(SparseLinear(9, 5, kept=20, generator=torch.Generator().manual_seed(rank)))
    wrapped = DistributedDataParallel(model)
    wrapped(torch.ones(1, 9))
    return model[0].topology.digest, model[0].weight


def error(call):
    try:
        call()
    except (RuntimeError, ValueError, TypeError) as reason:
        return f"{type(reason).__name__}: {reason}"
    return "none"


def disagreement(rank):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    masks = {"0.weight": torch.ones(4, 6, dtype=torch.bool), "1.weight": torch.ones(3, 4, dtype=torch.bool)}
    masks["1.weight"][rank, 1] = False
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1), SET(steps=5), masks=masks)


def diverging(rank):
    """The same connections at the start, and another seed for each process: they part at the first update, after step 2."""
    model, mask = network(), torch.ones(13, 7, dtype=torch.bool)
    mask[::2, 1::2] = False
    method = SET(sparsity=0.4, every=2, steps=STEPS, seed=rank, exclude=["2.*"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, method, masks={"0.weight": mask})
    for x, y in data():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def shrinking():
    model = network()
    to_sparse_(model)
    attach(DistributedDataParallel(model), None, GMP(steps=10))


def wrapped_later(rank):
    """As :func:`shrinking`, but wrapped when the method is already at work."""
    model, method = network(), GMP(sparsity=0.5, steps=10)
    to_sparse_(model, method)
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method)
    DistributedDataParallel(model)(data()[rank][0])


def fully_sharded(model):
    from torch.distributed.fsdp import fully_shard

    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def train_sharded(method, rank, interrupted=False):
    """What :func:`train` returns, of a model whose parameters, masks and optimizer state are sharded; interrupted after step 5,
    and begun again from what was saved.
    """
    method, start, saved, losses = SHARDED[method], 0, None, []
    for stop in (5, STEPS) if interrupted else (STEPS,):
        model = fully_sharded(network())
        optimizer = OPTIMIZERS["adam"](model.parameters())
        if saved is not None:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        sparsifier = attach(model, optimizer, method, resume=saved and saved[2])
        for x, y in data()[start:stop]:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[4 * rank : 4 * rank + 4]), y[4 * rank : 4 * rank + 4])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        for c in sparsifier.connections.values():
            assert c.inactive.shape == c.weight.parameter.to_local().shape
            assert c.kept == c.positions.numel()
            assert not c.weight.parameter.to_local()[c.inactive].any()
        saved, start = (
            copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict())),
            stop,
        )
    weights = [p.full_tensor().detach() for name, p in model.named_parameters() if name.endswith("weight")]
    return losses, weights, [c.positions for c in sparsifier.connections.values()]


def sharded(form):
    model = network()
    method = SET(sparsity=0.5, steps=10) if form == "stored" else DNW(sparsity=0.5)
    if form == "stored":
        to_sparse_(model, method)
    fully_sharded(model)
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1), method)


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = {
        "runs": {run: train(*run, rank=rank) for run in RUNS},
        "accumulated": {s: train(s, "rigl", "sgd", rank, accumulate=True) for s in ("masked", "stored")},
        "prepared": prepared_again(),
        "seeds": same_from_different_seeds(rank),
        "disagreement": error(lambda: disagreement(rank)),
        "diverging": error(lambda: diverging(rank)),
        "shrinking": error(shrinking),
        "wrapped later": error(lambda: wrapped_later(rank)),
        "sharded": {form: error(lambda form=form: sharded(form)) for form in ("stored", "latent")},
        "sharded runs": {method: train_sharded(method, rank) for method in SHARDED},
        "sharded again": train_sharded("rigl", rank, interrupted=True),
        "mean": processes.averaged(torch.tensor([1.0 + rank, 4.0])),
    }
    torch.save(found, f"{folder}/{rank}")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    multiprocessing.spawn(work, (port, str(folder)), nprocs=2)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_two_processes_are_one_with_the_double_batch(both, run):
    losses, weights, positions = train(*run)
    shares = [found["runs"][run] for found in both]
    for step, loss in enumerate(losses):
        assert sum(share[0][step] for share in shares) / 2 == pytest.approx(loss, rel=1e-12)
    for _, theirs, places in shares:
        assert all(torch.equal(a, b) for a, b in zip(places, positions, strict=True))
        for ours, found in zip(weights, theirs, strict=True):
            torch.testing.assert_close(found, ours, rtol=1e-10, atol=1e-13)
    assert all(torch.equal(a, b) for a, b in zip(shares[0][1], shares[1][1], strict=True))


@pytest.mark.parametrize("storage", ["masked", "stored"])
def test_batches_may_accumulate(both, storage):
    _, weights, positions = train(storage, "rigl", "sgd")
    for found in both:
        _, theirs, places = found["accumulated"][storage]
        assert all(torch.equal(a, b) for a, b in zip(places, positions, strict=True))
        for ours, other in zip(weights, theirs, strict=True):
            torch.testing.assert_close(other, ours, rtol=1e-10, atol=1e-13)


def test_broadcasting_buffers_prepares_nothing_again(both):
    for found in both:
        made, updates = found["prepared"]
        assert updates == 2
        assert made == updates


def test_the_first_process_decides_over_topologies_drawn_at_random(both):
    assert both[0]["seeds"][0] == both[1]["seeds"][0]
    assert torch.equal(both[0]["seeds"][1], both[1]["seeds"][1])


def test_errors_name_what_is_wrong(both):
    for found in both:
        assert "when the sparsifier was attached" in found["disagreement"]
        assert "different connections in 1.weight: rank 1 differs" in found["disagreement"]
        assert "after the topology update at step 2, the processes of this run" in found["diverging"]
        assert "different connections in 0.weight: rank 1 differs" in found["diverging"]
        assert "gmp changes how many connections a parameter has" in found["shrinking"]
        assert "gmp changes how many connections a parameter has" in found["wrapped later"]
        assert "0.weight holds only its kept connections, and is sharded" in found["sharded"]["stored"]
        assert "dnw trains pruned weights out of sight" in found["sharded"]["latent"]
        assert "0.weight, 2.weight are sharded over" in found["sharded"]["latent"]


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_parameters_are_trained_as_whole_ones(both, name):
    """Every process holds a part of the parameters, masks and moments, and all decide as one that holds everything."""
    model, method = network(), SHARDED[name]
    optimizer = OPTIMIZERS["adam"](model.parameters())
    sparsifier = attach(model, optimizer, method)
    losses = []
    for x, y in data():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    shares = [found["sharded runs"][name] for found in both]
    for step, loss in enumerate(losses):
        assert sum(share[0][step] for share in shares) / 2 == pytest.approx(loss, rel=1e-12)
    for _, weights, positions in shares:
        for c, found, weight in zip(sparsifier.connections.values(), positions, weights, strict=True):
            assert torch.equal(found, c.positions)
            torch.testing.assert_close(weight, c.weight.parameter.detach(), rtol=1e-10, atol=1e-13)


def test_an_interrupted_sharded_run_has_the_bits_of_a_straight_one(both):
    for found in both:
        straight, again = found["sharded runs"]["rigl"], found["sharded again"]
        assert straight[0] == again[0]
        for part in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(straight[part], again[part], strict=True))


def test_the_mean_over_processes(both):
    for found in both:
        assert found["mean"].tolist() == [1.5, 4.0]


def test_one_process_needs_no_messages():
    tensor = torch.ones(2)
    assert processes.averaged(tensor) is tensor
    processes.require_agreement({"a": 1}, "now", torch.device("cpu"))
    assert processes.count() == 1


def test_a_digest_is_a_number_of_the_positions():
    positions = CSR.random((30, 40), 100, torch.Generator().manual_seed(0)).positions()
    assert processes.digest(positions) == processes.digest(positions.clone())
    assert processes.digest(positions) != processes.digest(positions[:-1])
    assert -(2**63) <= processes.digest(positions) < 2**63
