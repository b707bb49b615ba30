import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openwork.kernels.frozen import freeze, frozen_linear
from openwork.kernels.linear import ACTIVATIONS, sparse_linear
from tests.kernels.matrices import BATCHES, SIZES, SPARSITIES, random_matrix


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(rows=SIZES, columns=SIZES, batch=BATCHES, sparsity=SPARSITIES, seed=st.integers(0, 99))
def test_frozen_gives_the_same_bits(level, activation, rows, columns, batch, sparsity, seed):
    prepared, values, _ = random_matrix(rows, columns, sparsity, seed)
    x, bias = torch.randn(batch, columns), torch.randn(rows)
    frozen = freeze(values, prepared)
    expected = sparse_linear(x, values, prepared, bias, activation)
    values.zero_()  # frozen weights do not follow
    assert torch.equal(frozen_linear(x, frozen, bias, activation), expected)


def test_the_operator_is_sound_and_compiles():
    prepared, values, _ = random_matrix(20, 30, 0.5, 1)
    frozen, x = freeze(values, prepared), torch.randn(5, 30)
    torch.library.opcheck(
        torch.ops.openwork.frozen_linear, (x, frozen.weights, None, prepared.walk, 20, "relu")
    )
    compiled = torch.compile(lambda x: frozen_linear(x, frozen) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), frozen_linear(x, frozen) + 1)


def test_what_cannot_be_frozen_is_refused():
    prepared, values, _ = random_matrix(20, 30, 0.5, 2)
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        freeze(values.double(), prepared)
    with pytest.raises(TypeError, match=r"found torch\.bfloat16"):
        frozen_linear(torch.zeros(1, 30, dtype=torch.bfloat16), freeze(values, prepared))
    with pytest.raises(RuntimeError, match="no gradients"):
        frozen_linear(torch.zeros(1, 30, requires_grad=True), freeze(values, prepared))
