import copy
import io
from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import openwork as ow
from openwork.kernels import native
from openwork.kernels.execution import is_native
from openwork.layouts import chain as chain_page
from openwork.layouts.chain import Chain, links
from openwork.layouts.linear import SparseLinear
from openwork.layouts.packed import PackedLinear


def sequential(*between: nn.Module, sizes: tuple[int, ...] = (70, 50, 33, 40, 7)) -> nn.Sequential:
    """Sparse layers with `between` behind each, then a dense one."""
    modules = OrderedDict()
    generator = torch.Generator().manual_seed(1)
    for i, (inputs, outputs) in enumerate(pairwise(sizes[:-1])):
        modules[f"fc{i}"] = SparseLinear(inputs, outputs, sparsity=0.8, generator=generator)
        for j, module in enumerate(between):
            modules[f"act{i}{j}"] = copy.deepcopy(module)
    modules["head"] = nn.Linear(sizes[-2], sizes[-1])
    return nn.Sequential(modules)


def chained(plain: nn.Sequential) -> Chain:
    chain = copy.deepcopy(plain)
    Chain.adopt(chain)
    return chain


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs and all gradients."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    F.cross_entropy(y, torch.arange(len(x)) % y.shape[1]).backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


def through_tiles(monkeypatch) -> list[int]:
    """How many layers went through tiles together, each time that some did."""
    calls = []
    run = chain_page._run

    def counted(x, found):
        calls.append(len(found))
        return run(x, found)

    monkeypatch.setattr(chain_page, "_run", counted)
    return calls


@pytest.mark.parametrize(
    "between", [(nn.ReLU(),), (), (nn.GELU(), nn.Identity()), (nn.ReLU(inplace=True), nn.Tanh())]
)
@pytest.mark.parametrize("batch", [64, 128, 100, 191])
def test_a_chain_has_the_bits_of_its_layers(monkeypatch, between, batch):
    plain = sequential(*between)
    chain, x = chained(plain), torch.randn(batch, 70)
    expected = results(plain, x)
    calls = through_tiles(monkeypatch)
    found = results(chain, x)
    assert calls == [3]
    exact = not any(
        isinstance(module, (nn.GELU, nn.Tanh)) for module in between
    )  # torch's own differ at the ends of rows
    for a, b in zip(found, expected, strict=True):
        if exact:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [0, 1, 31, 40, 65])
def test_batches_that_would_be_mostly_padding_take_the_ordinary_way(monkeypatch, batch):
    plain = sequential(nn.ReLU())
    chain, x = chained(plain), torch.randn(batch, 70)
    calls = through_tiles(monkeypatch)
    assert torch.equal(chain(x), plain(x))
    assert not calls


def test_inputs_may_have_any_strides_and_dimensions(monkeypatch):
    plain = sequential(nn.ReLU())
    chain = chained(plain)
    across = torch.randn(70, 128).t()
    assert torch.equal(chain(across), plain(across))
    calls = through_tiles(monkeypatch)
    assert torch.equal(chain(torch.ones(2, 64, 70)), plain(torch.ones(2, 64, 70)))
    assert not calls
    with pytest.raises(ValueError, match=r"takes \[\.\.\., 70\]"):
        chain(torch.ones(64, 71))


def test_bits_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    chain, x = chained(sequential(nn.ReLU()))[:-1], torch.randn(192, 70)  # the dense end is torch's affair
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(chain, x))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_layers_without_bias_and_frozen_ones():
    plain = sequential(nn.ReLU())
    plain.fc0.weight_values.requires_grad_(False)
    plain.fc1.bias = None
    plain.fc2.bias.requires_grad_(False)
    chain, x = chained(plain), torch.randn(64, 70)
    for a, b in zip(results(chain, x), results(plain, x), strict=True):
        assert (a is b is None) or torch.equal(a, b)


def test_second_derivatives():
    plain = sequential(nn.ReLU())
    chain, x = chained(plain), torch.randn(64, 70)

    def curvature(model):
        values = [model.fc0.weight_values, model.fc2.weight_values]
        gradients = torch.autograd.grad(model(x).square().mean(), values, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), values)

    for a, b in zip(curvature(chain), curvature(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_compiled():
    chain, x = chained(sequential(nn.ReLU())), torch.randn(128, 70)
    expected = results(chain, x)
    torch._dynamo.reset()
    found = results(torch.compile(chain, backend="aot_eager", fullgraph=True), x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_whoever_looks_at_an_activation_sees_rows():
    chain, x = chained(sequential(nn.ReLU())), torch.randn(128, 70)
    expected = chain(x)
    seen = []
    chain.act10.register_forward_hook(lambda module, args, y: seen.append(y.shape))
    assert torch.equal(chain(x), expected)
    assert seen == [(128, 33)]
    chain.fc1.observe = True
    chain(x).sum().backward()
    ((inputs, gradients),) = chain.fc1.observations
    assert (inputs.shape, gradients.shape) == ((128, 50), (128, 33))


def test_other_types_take_the_ordinary_way():
    chain = chained(sequential(nn.ReLU())).double()
    x = torch.randn(64, 70).double()
    expected = x
    for module in chain:
        expected = module(expected)
    assert torch.equal(chain(x), expected)


def test_autocast():
    chain, x = chained(sequential(nn.ReLU())), torch.randn(64, 70)
    plain = copy.deepcopy(chain)
    Chain.release(plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(chain(x), plain(x))
        assert torch.equal(chain(x.bfloat16()), plain(x.bfloat16()))


def test_what_breaks_a_chain():
    first, second = (SparseLinear(8, 8, sparsity=0.5) for _ in range(2))
    assert len(links([first, nn.ReLU(), second])[0]) == 2
    assert links([first, nn.Dropout(), second]) == (links([first])[0], 1)
    assert len(links([first, nn.LayerNorm(8), second])[0]) == 1
    assert links([nn.ReLU(), first])[0] == []

    class Doubling(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    assert len(links([first, Doubling(), second])[0]) == 1


def test_to_sparse_makes_chains_and_to_dense_ends_them():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4)
    )
    names = list(model.state_dict())
    ow.to_sparse_(model, ow.StaticRandom(sparsity=0.5))
    assert type(model) is Chain
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    x = torch.randn(64, 4, 5)
    for copied in (loaded, again):
        assert torch.equal(copied(x), model(x))
    ow.to_dense_(model)
    assert type(model) is nn.Sequential
    assert list(model.state_dict()) == names


def test_models_that_branch_and_reshape_keep_their_results():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24))
            self.two = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 24))

        def forward(self, x):
            y = self.one(x)
            z = self.two(y) + y  # two consumers of y, a residual
            z = z.view(-1, 8, 3).transpose(1, 2).reshape(x.shape[0], 24)
            return self.one[0](z)  # a layer of a chain by itself

    torch.manual_seed(0)
    model = Branching()
    masks = {n: torch.rand(p.shape) < 0.4 for n, p in model.named_parameters() if p.dim() == 2}
    for name, mask in masks.items():
        model.get_parameter(name).data *= mask
    stored = copy.deepcopy(model)
    ow.to_sparse_(stored, masks)
    assert type(stored.one) is Chain
    x = torch.randn(64, 24)
    torch.testing.assert_close(stored(x), model(x), rtol=1e-4, atol=1e-5)
    assert is_native(x)


def test_packed_layers_are_chained_where_that_is_faster(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(300, 300), nn.GELU()))).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= torch.rand(300, 300) < 0.03
    x = torch.randn(128, 300)
    expected = model(x)
    ow.pack_(model, x, cache=False, seconds=0.05)
    streams = [layer for layer in model if type(layer) is PackedLinear and layer.takes_tiles(x)]
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        rows = model(x)
        for Form in (Chain, nn.Sequential):
            model.__class__ = Form
            assert torch.equal(model(x), rows)
    if len(streams) == 3:
        Chain.adopt(model)
        calls = through_tiles(monkeypatch)
        with torch.no_grad():
            assert torch.equal(model(x), rows)
        assert calls == [3]
    with pytest.raises(RuntimeError, match="no gradients"):
        model(x.requires_grad_())
