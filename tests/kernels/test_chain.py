from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import native
from openwork.kernels.chain import Stage, chained_linear
from openwork.kernels.linear import sparse_linear
from tests.kernels.matrices import SPARSITIES, random_matrix

WIDTHS = st.lists(st.integers(1, 90), min_size=3, max_size=5)


def stages(widths, sparsity, relu=True):
    """A stage from each width to the next; every other one without a bias, relu behind all but the last."""
    made = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        prepared, values, _ = random_matrix(outputs, inputs, sparsity, i)
        bias = torch.randn(outputs).requires_grad_() if i % 2 == 0 else None
        made.append(Stage(prepared, values.requires_grad_(), bias, relu and i < len(widths) - 2))
    return made


def layered(x, chain):
    for stage in chain:
        x = sparse_linear(x, stage.values, stage.prepared, stage.bias, stage.activation)
    return x


def parameters(chain):
    return [t for stage in chain for t in (stage.values, stage.bias) if t is not None]


@given(widths=WIDTHS, sparsity=SPARSITIES, batch=st.integers(1, 200))
def test_a_chain_has_the_bits_of_its_layers(level, widths, sparsity, batch):
    chain = stages(widths, sparsity)
    x, dy = torch.randn(batch, widths[0], requires_grad=True), torch.randn(batch, widths[-1])
    ours, theirs = chained_linear(x, chain), layered(x, chain)
    assert torch.equal(ours, theirs)
    inputs = [x, *parameters(chain)]
    for a, b in zip(
        torch.autograd.grad(ours, inputs, dy), torch.autograd.grad(theirs, inputs, dy), strict=True
    ):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(chained_linear(x, chain), theirs)


@pytest.mark.parametrize("batch", [128, 700])
def test_bits_do_not_depend_on_threads_blocks_or_parts(level, monkeypatch, batch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    before = torch.get_num_threads()
    x, dy = torch.randn(batch, 80, requires_grad=True), torch.randn(batch, 45)
    results = []
    try:
        for threads, block, parts in [(1, 300, 1), (2, 64, 2), (3, 17, 5), (5, 128, 3), (4, 1, 1)]:
            torch.set_num_threads(threads)
            monkeypatch.setattr("openwork.kernels.index.block_columns", lambda *_, block=block: block)
            monkeypatch.setattr("openwork.kernels.index.part_count", lambda _, parts=parts: parts)
            torch.manual_seed(1)
            chain = stages([80, 170, 100, 45], 0.8)
            y = chained_linear(x, chain)
            results.append([y.detach(), *torch.autograd.grad(y, [x, *parameters(chain)], dy)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("wanted", range(7))
def test_only_what_is_wanted_gets_a_gradient(level, wanted):
    chain = stages([30, 40, 50, 20], 0.7)
    x = torch.randn(70, 30)
    every = [x, *(t for stage in chain for t in (stage.values, stage.bias))]
    for i, tensor in enumerate(every):
        if tensor is not None:
            tensor.requires_grad_(i == wanted)
    if every[wanted] is None:
        assert not chained_linear(x, chain).requires_grad
        return
    dy = torch.randn(70, 20)
    (ours,) = torch.autograd.grad(chained_linear(x, chain), [every[wanted]], dy)
    (theirs,) = torch.autograd.grad(layered(x, chain), [every[wanted]], dy)
    assert torch.equal(ours, theirs)


def test_second_derivatives(level):
    chain = stages([12, 20, 15, 6], 0.5)
    x = torch.randn(70, 12, requires_grad=True)

    def curvature(y):
        inputs = [x, *parameters(chain)]
        first = torch.autograd.grad(y.square().mean(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    for a, b in zip(curvature(chained_linear(x, chain)), curvature(layered(x, chain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_of_other_strides_and_weights_changed_in_between(level):
    chain = stages([30, 40, 20], 0.7)
    x = torch.randn(64, 30)
    across = torch.randn(20, 64).t()
    for dy in (across, torch.ones(()).expand(64, 20)):
        ours = torch.autograd.grad(chained_linear(x, chain), parameters(chain), dy)
        theirs = torch.autograd.grad(layered(x, chain), parameters(chain), dy)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    y = chained_linear(x, chain)
    with torch.no_grad():
        chain[1].values.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_stages_must_fit():
    chain = stages([30, 40, 20], 0.7)
    with pytest.raises(ValueError, match="stage 0 takes 40 features, and what comes before it gives 30"):
        chained_linear(torch.randn(64, 30), chain[1:])
