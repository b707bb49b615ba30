"""SparseLinear against the dense layer with a mask, and as a citizen of PyTorch."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from openwork.layouts.csr import CSR
from openwork.layouts.linear import SparseLinear


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(inputs: int = 11, outputs: int = 7, kept: int = 23, **options: object) -> SparseLinear:
    return SparseLinear(inputs, outputs, kept=kept, generator=generator(3), **options)  # type: ignore[arg-type]


def with_empty_row_and_column() -> CSR:
    return CSR.from_mask(torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 1]], dtype=torch.bool))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.booleans(),
    st.lists(st.integers(1, 4), max_size=3), st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_forward_and_backward_are_those_of_the_masked_dense_layer(
    inputs: int, outputs: int, sparsity: float, bias: bool, leading: list[int], dtype: torch.dtype
) -> None:
    sparse = SparseLinear(inputs, outputs, bias, sparsity=sparsity, generator=generator(), dtype=dtype)
    assert sparse.weight_values.numel() == round((1 - sparsity) * inputs * outputs)
    x = torch.randn(*leading, inputs, dtype=dtype, generator=generator(1), requires_grad=True)
    dy = torch.randn(*leading, outputs, dtype=dtype, generator=generator(2))
    y = sparse(x)
    y.backward(dy)
    dense_x, dense = x.detach().clone().requires_grad_(), sparse.to_linear()
    expected = dense(dense_x)
    expected.backward(dy)
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(y, expected, **near)
    torch.testing.assert_close(x.grad, dense_x.grad, **near)
    assert dense.weight.grad is not None
    assert sparse.weight_values.grad is not None
    kept_gradient = dense.weight.grad[sparse.topology.mask()]
    torch.testing.assert_close(sparse.weight_values.grad, kept_gradient, **near)
    if bias:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, **near)


def test_gradcheck() -> None:
    sparse = SparseLinear.from_values(
        with_empty_row_and_column(), torch.randn(4).double(), torch.randn(3).double()
    )
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, values: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(sparse, {"weight_values": values, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, sparse.weight_values, sparse.bias))


def test_is_a_linear_whose_weight_is_a_copy() -> None:
    sparse = layer()
    assert isinstance(sparse, nn.Linear)
    weight = sparse.weight
    assert weight.shape == (7, 11)
    assert not weight.requires_grad
    assert torch.equal(weight[sparse.topology.mask()], sparse.weight_values.detach())
    weight.zero_()
    assert sparse.weight.any()
    assert [name for name, _ in sparse.named_parameters()] == ["weight_values", "bias"]
    assert list(sparse.state_dict()) == ["weight_values", "bias", "weight_crow", "weight_col"]
    assert "kept=23, density=0.2987" in repr(sparse)


@pytest.mark.parametrize("value", [nn.Parameter(torch.zeros(7, 11)), torch.zeros(7, 11), None])
def test_setting_the_dense_weight_is_refused(value: object) -> None:
    sparse = layer()
    with pytest.raises(TypeError, match=r"23 kept weights and no dense tensor.*retopologize_.*from_linear"):
        sparse.weight = value  # type: ignore[assignment]
    with pytest.raises(TypeError, match="cannot set `weight`"):
        sparse.register_parameter("weight", None)


def test_a_layer_far_too_large_to_be_dense() -> None:
    sparse = SparseLinear(
        1_000_000, 200_000, sparsity=1 - 1e-7, generator=generator()
    )  # 800 GB if it were dense
    assert sparse.weight_values.numel() == 20_000
    assert repr(sparse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_initial_weights_are_uniform_for_the_fan_in_of_each_unit(dtype: torch.dtype) -> None:
    fan_in = [0, 1, 4, 400, 900]
    mask = torch.arange(1000) < torch.tensor(fan_in)[:, None]
    sparse = SparseLinear(1000, 5, topology=CSR.from_mask(mask), generator=generator(), dtype=dtype)
    assert sparse.weight_values.dtype == sparse.bias.dtype == dtype
    for row, values in zip(fan_in, sparse.weight_values.detach().float().split(fan_in), strict=True):
        if row:
            bound = 1 / math.sqrt(row)
            assert values.abs().max() <= bound * 1.01
        if row >= 400:  # mean 0 and variance bound^2 / 3, within four standard errors
            assert abs(values.mean()) < 4 * bound / math.sqrt(3 * row)
            assert abs(values.square().mean() * 3 / bound**2 - 1) < 4 * math.sqrt(0.8 / row)
    bounds = [0.0] + [1 / math.sqrt(n) for n in fan_in[1:]]
    assert (sparse.bias.detach().float().abs() <= torch.tensor(bounds) * 1.01).all()
    assert sparse.bias[0] == 0


def test_dense_initial_weights_have_the_spread_of_nn_linear() -> None:
    ours = SparseLinear(300, 200, sparsity=0, generator=generator()).weight.flatten().sort().values
    theirs = nn.Linear(300, 200).weight.detach().flatten().sort().values
    assert (ours - theirs).abs().max() < 0.02 / math.sqrt(300)  # the largest distance between quantiles


def test_generator_makes_layers_repeatable_and_leaves_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    a, b = layer(), layer()
    SparseLinear.from_linear(nn.Linear(2, 2, device="meta").to_empty(device="cpu"), torch.ones(2, 2) > 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert a.topology == b.topology
    assert torch.equal(a.weight_values, b.weight_values)
    torch.manual_seed(4)
    c = SparseLinear(5, 5, sparsity=0.5)
    torch.manual_seed(4)
    assert torch.equal(c.weight, SparseLinear(5, 5, sparsity=0.5).weight)


def test_from_linear_keeps_zeros_that_are_kept() -> None:
    linear = nn.Linear(4, 3).eval()
    linear.weight.requires_grad_(False)
    with torch.no_grad():
        linear.weight[0, 0] = 0
    mask = with_empty_row_and_column().mask()
    before = linear.weight.clone()
    for kept in (mask, CSR.from_mask(mask)):
        sparse = SparseLinear.from_linear(linear, kept)
        assert torch.equal(linear.weight, before)
        assert sparse.weight_values.tolist() == linear.weight[mask].tolist()
        assert sparse.weight_values[0] == 0
        assert torch.equal(sparse.bias, linear.bias)
        assert not sparse.weight_values.requires_grad
        assert sparse.bias.requires_grad
        assert not sparse.training
    back = sparse.to_linear()
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, linear.weight * mask)
    assert not back.weight.requires_grad
    with pytest.raises(ValueError, match=r"weight \[3, 4\]"):
        SparseLinear.from_linear(linear, mask.T)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({}, TypeError, "exactly one"),
        ({"sparsity": 0.5, "kept": 3}, TypeError, "exactly one"),
        ({"kept": 13}, ValueError, "cannot keep 13"),
        ({"sparsity": 1.5}, ValueError, "not 1.5"),
        ({"sparsity": math.nan}, ValueError, "not nan"),
        ({"kept": 3, "topology": with_empty_row_and_column()}, TypeError, "already says"),
    ],
)
def test_wrong_wishes_are_refused(options: dict[str, object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        SparseLinear(4, 3, **options)  # type: ignore[arg-type]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="has a topology"):
        SparseLinear(3, 4, topology=with_empty_row_and_column())
    with pytest.raises(ValueError, match=r"need values \[4\]"):
        SparseLinear.from_values(with_empty_row_and_column(), torch.ones(1))
    with pytest.raises(ValueError, match=r"takes \[\.\.\., 11\], not float32 \[2, 12\]"):
        layer()(torch.ones(2, 12))


def test_retopologize_keeps_the_parameter_and_its_place_in_the_optimizer() -> None:
    sparse = layer()
    parameter, old, memory = sparse.weight_values, sparse.topology, sparse.weight_values.data_ptr()
    old_mask = old.mask()
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.5)
    sparse(torch.ones(2, 11)).sum().backward()
    for kept in (23, 5, 40, 0, 77):
        version = sparse.topology_version
        topology = CSR.random((7, 11), kept, generator(kept))
        values = torch.randn(kept, generator=generator())
        sparse.retopologize_(topology, values)
        assert sparse.weight_values is parameter
        assert parameter.grad is None
        assert sparse.topology == topology
        assert sparse.topology_version == version + 1
        x = torch.randn(3, 11, generator=generator(1))
        torch.testing.assert_close(sparse(x), F.linear(x, topology.dense(values), sparse.bias))
        sparse(x).sum().backward()
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), values - 0.5 * x.sum(0)[topology.col.long()])
        if kept == 23:
            assert parameter.data_ptr() == memory
        optimizer.zero_grad()
    assert torch.equal(old.mask(), old_mask)  # what was taken before does not change under its owner


def test_retopologize_while_a_graph_is_alive() -> None:
    sparse = layer()
    x = torch.randn(3, 11, generator=generator(1))
    alive = sparse(x).sum()  # as the last loss of a loop is
    for kept in (40, 3, 23):
        sparse.retopologize_(CSR.random((7, 11), kept, generator()), torch.ones(kept))
        sparse(x).sum().backward()
        assert sparse.weight_values.grad.shape == (kept,)
    del alive


def test_compiles_without_breaks_and_a_new_topology_does_not_recompile() -> None:
    sparse = layer()
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager", dynamic=False)
    x = torch.randn(3, 11, generator=generator(1), requires_grad=True)
    compiled(x).sum().backward()
    torch.testing.assert_close(compiled(x), sparse(x))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            sparse.retopologize_(CSR.random((7, 11), 23, generator(seed)), torch.randn(23))
            y = compiled(x)
            y.sum().backward()
            torch.testing.assert_close(y, F.linear(x, sparse.weight, sparse.bias))


def test_retopologize_refuses_what_does_not_fit_and_changes_nothing() -> None:
    sparse = layer()
    good = CSR.random((7, 11), 5, generator())
    before = copy.deepcopy(sparse.state_dict())
    outside = CSR((7, 11), good.crow, good.col + 11)
    for topology, values, told in [
        (CSR.random((11, 7), 5, generator()), torch.ones(5), "not \\(11, 7\\)"),
        (good, torch.ones(6), "need values float32 \\[5\\], not float32 \\[6\\]"),
        (good, torch.ones(5).double(), "float64"),
        (outside, torch.ones(5), "topology: row .* names column"),
    ]:
        with pytest.raises(ValueError, match=told):
            sparse.retopologize_(topology, values)
    assert sparse.topology_version == 0
    assert all(torch.equal(before[key], value) for key, value in sparse.state_dict().items())


def test_writes_to_the_buffers_are_noticed() -> None:
    """Averaging of models and DDP write buffers that way."""
    sparse, other = layer(), SparseLinear(11, 7, kept=23, generator=generator(8))
    x = torch.randn(3, 11, generator=generator(1))
    sparse(x)
    version, prepared = sparse.topology_version, sparse.prepared
    sparse.weight_col.copy_(sparse.weight_col.clone())
    assert sparse.prepared is prepared  # the same contents: nothing to do
    with torch.no_grad():
        for ours, theirs in zip(
            [*sparse.parameters(), *sparse.buffers()], [*other.parameters(), *other.buffers()], strict=True
        ):
            ours.copy_(theirs)
    assert torch.equal(sparse(x), other(x))
    assert sparse.topology_version == version + 1
    sparse.weight_col[0] = 10**6
    with pytest.raises(ValueError, match="weight"):
        sparse(x)


@pytest.mark.parametrize("kept", [23, 1, 60])
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_of_any_size_loads(kept: int, assign: bool) -> None:
    source = nn.Sequential(layer(), nn.ReLU(), layer(7, 3, 9))
    source[0] = SparseLinear(11, 7, kept=kept, generator=generator(9))
    stream = io.BytesIO()
    torch.save(source.state_dict(), stream)
    stream.seek(0)
    target = nn.Sequential(layer(), nn.ReLU(), layer(7, 3, 9))
    x, parameter = torch.randn(4, 11), target[0].weight_values
    target(x).sum().backward()
    target.load_state_dict(torch.load(stream, weights_only=True), assign=assign)
    assert torch.equal(target(x), source(x))
    assert assign or target[0].weight_values is parameter
    target(x).sum().backward()
    assert target[0].weight_values.grad.shape == (kept,)
    again = nn.Sequential(layer(), nn.ReLU(), layer(7, 3, 9))
    again.load_state_dict(load_safetensors(save_safetensors(source.state_dict())))
    assert torch.equal(again(x), source(x))


def test_a_layer_loads_its_own_state() -> None:
    one = layer()
    before = copy.deepcopy(one.state_dict())
    one.load_state_dict(one.state_dict())
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in before.items())


def test_bad_state_is_refused_by_name() -> None:
    model = nn.Sequential(layer())
    good = copy.deepcopy(model.state_dict())
    for change, told in [
        ({"0.weight_col": good["0.weight_col"] + 11}, r"0\.weight: row \d+ names column"),
        ({"0.weight_col": good["0.weight_col"].long()}, r"0\.weight: col is a vector of int32"),
        ({"0.weight_crow": good["0.weight_crow"][:-1]}, r"0\.weight: crow of 7 rows"),
        ({"0.weight_values": good["0.weight_values"][:-1]}, r"0\.weight_values: 23 connections need \[23\]"),
        ({"0.weight_values": None}, r"0\.weight: .*0\.weight_values is missing"),
    ]:
        state = {key: value for key, value in (good | change).items() if value is not None}
        with pytest.raises(RuntimeError, match=told):
            model.load_state_dict(state)
        assert all(torch.equal(good[key], value) for key, value in model.state_dict().items())
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_values"):
        model.load_state_dict({"0.bias": good["0.bias"]})


def test_copies_are_independent() -> None:
    sparse = layer()
    x = torch.randn(2, 11)
    expected = sparse(x)
    twin = copy.deepcopy(sparse)
    twin.retopologize_(CSR.random((7, 11), 3, generator()), torch.ones(3))
    assert torch.equal(sparse(x), expected)
    assert twin.weight_values.numel() == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    sparse = layer().to(dtype)
    assert sparse.weight_values.dtype == dtype
    assert sparse.weight_col.dtype == torch.int32
    x = torch.randn(3, 11, dtype=dtype, requires_grad=True)
    y = sparse(x)
    torch.testing.assert_close(y, F.linear(x, sparse.weight, sparse.bias))
    y.sum().backward()
    assert sparse.weight_values.grad is not None
    assert sparse.weight_values.grad.dtype == dtype


def test_through_the_meta_device() -> None:
    sparse = layer()
    empty = layer().to("meta")
    assert empty.weight_values.is_meta
    empty.to_empty(device="cpu").load_state_dict(sparse.state_dict())
    x = torch.randn(2, 11)
    assert torch.equal(empty(x), sparse(x))


@pytest.mark.parametrize("inplace", [False, True])
def test_observations_rank_the_dense_gradient(inplace: bool) -> None:
    sparse = layer().double()
    dense = sparse.to_linear()
    activation = nn.ReLU(inplace)
    batches = [torch.randn(shape, 11, dtype=torch.float64, generator=generator(shape)) for shape in (2, 5)]
    batches = [batches[0].view(1, 2, 11), batches[1]]

    def run(model: nn.Module) -> None:
        for batch in batches:  # two backward passes: gradient accumulation
            activation(model(batch)).square().sum().backward()

    run(sparse)
    assert sparse.observations == []
    sparse.observe = True
    with torch.no_grad():
        sparse(batches[0])
    run(sparse)
    sparse.observe = False
    run(dense)
    run(sparse)
    assert [(x.shape, dy.shape) for x, dy in sparse.observations] == [((2, 11), (2, 7)), ((5, 11), (5, 7))]
    assert not any(t.requires_grad for pair in sparse.observations for t in pair)
    gradient = sum(dy.T @ x for x, dy in sparse.observations)
    torch.testing.assert_close(gradient, dense.weight.grad)


def test_observing_changes_no_number() -> None:
    plain, watched = layer(), layer()
    watched.observe = True
    x = torch.randn(4, 11)
    for model in (plain, watched):
        model(x).square().sum().backward()
    assert torch.equal(plain(x), watched(x))
    assert torch.equal(plain.weight_values.grad, watched.weight_values.grad)


def test_recomputed_activations_are_observed_once() -> None:
    sparse = layer()
    sparse.observe = True
    x = torch.randn(4, 11, requires_grad=True)
    torch.utils.checkpoint.checkpoint(sparse, x, use_reentrant=False).sum().backward()
    assert len(sparse.observations) == 1


def test_adam_state_has_the_size_of_the_kept_weights() -> None:
    sparse = layer()
    optimizer = torch.optim.Adam(sparse.parameters())
    sparse(torch.randn(3, 11)).sum().backward()
    optimizer.step()
    assert optimizer.state[sparse.weight_values]["exp_avg"].shape == (23,)
