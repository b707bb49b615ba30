"""Two real processes against one with the double batch, in float64."""

import contextlib
import os
import socket

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from openwork import CSR, GMP, SET, RigL, SparseLinear, attach, processes, to_sparse_
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


def shrinking():
    model = network()
    to_sparse_(model)
    attach(DistributedDataParallel(model), None, GMP(steps=10))


def sharded():
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model)
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1), SET(sparsity=0.5, steps=10))


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
        "shrinking": error(shrinking),
        "sharded": error(sharded),
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
        assert "gmp changes how many connections a parameter has" in found["shrinking"]
        assert "0.weight is sharded over processes" in found["sharded"]


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
