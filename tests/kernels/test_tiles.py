import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels import reference
from openwork.kernels.linear import sparse_linear
from openwork.kernels.tiles import pack_tiles, sparse_linear_tiles, unpack_tiles
from tests.kernels.matrices import BATCHES, SIZES, SPARSITIES, random_matrix


@given(batch=BATCHES, features=SIZES)
def test_packing_equals_the_reference_and_back(level, batch, features):
    x = torch.randn(batch, features)
    tiles = pack_tiles(x)
    assert torch.equal(tiles, reference.pack_tiles(x))
    assert torch.equal(unpack_tiles(tiles, batch), x)
    assert torch.equal(reference.unpack_tiles(tiles, batch), x)


@given(rows=SIZES, columns=SIZES, batch=BATCHES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_a_layer_on_tiles_is_the_layer(level, rows, columns, batch, sparsity, seed):
    prepared, values, _ = random_matrix(rows, columns, sparsity, seed)
    x, bias = torch.randn(batch, columns), torch.randn(rows)
    y = unpack_tiles(sparse_linear_tiles(pack_tiles(x), values, prepared, bias, "gelu"), batch)
    assert torch.equal(y, sparse_linear(x, values, prepared, bias, "gelu"))


def test_a_chain_has_the_gradients_of_the_layers(level):
    first, v1, _ = random_matrix(40, 50, 0.7, 1)
    second, v2, _ = random_matrix(30, 40, 0.7, 2)
    x, bias = torch.randn(70, 50), torch.randn(40)
    inputs = [tensor.requires_grad_() for tensor in (x, v1, v2, bias)]

    hidden = sparse_linear_tiles(pack_tiles(x), v1, first, bias, "relu")
    chained = unpack_tiles(sparse_linear_tiles(hidden, v2, second), 70)
    layered = sparse_linear(sparse_linear(x, v1, first, bias, "relu"), v2, second)
    for a, b in zip(
        torch.autograd.grad(chained.square().sum(), inputs),
        torch.autograd.grad(layered.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_unaligned_tiles_are_copied(level):
    prepared, values, _ = random_matrix(10, 20, 0.5, 3)
    tiles = pack_tiles(torch.randn(64, 20))
    shifted = torch.empty(tiles.numel() + 1)[1:].view_as(tiles).copy_(tiles)
    assert torch.equal(
        sparse_linear_tiles(shifted, values, prepared), sparse_linear_tiles(tiles, values, prepared)
    )


def test_float64_goes_through_the_reference():
    prepared, values, dense = random_matrix(10, 20, 0.5, 4)
    x = torch.randn(70, 20).double()
    y = unpack_tiles(sparse_linear_tiles(pack_tiles(x), values.double(), prepared), 70)
    torch.testing.assert_close(y, x @ dense.double().T)


def test_operators_are_sound():
    x = torch.randn(70, 20, requires_grad=True)
    torch.library.opcheck(torch.ops.openwork.pack_tiles, (x,))
    torch.library.opcheck(torch.ops.openwork.unpack_tiles, (torch.randn(2, 20, 64, requires_grad=True), 70))


def test_errors_say_what_was_found():
    with pytest.raises(ValueError, match=r"\[count, features, 64\], found \[2, 3\]"):
        unpack_tiles(torch.zeros(2, 3), 2)
    with pytest.raises(ValueError, match="65 samples need 2 tiles, found 1"):
        unpack_tiles(torch.zeros(1, 3, 64), 65)
