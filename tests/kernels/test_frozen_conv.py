import pytest
import torch
from hypothesis import given

from openwork.kernels import conv_operators
from openwork.kernels.conv import Convolution, sparse_conv
from openwork.kernels.frozen_conv import freeze_conv, frozen_conv
from tests.kernels.test_conv import problems, random_weight


@pytest.mark.parametrize("grouped", [False, True])
@given(problem=problems())
def test_frozen_gives_the_same_bits(level, grouped, problem):
    _, x, prepared, values, _ = problem
    bias = torch.randn(prepared.convolution.outputs)
    frozen = freeze_conv(values, prepared, grouped=grouped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_operators, "group", lambda *_: grouped)
        expected = sparse_conv(x, values, prepared, bias, "relu")
    values.zero_()  # frozen weights do not follow
    assert torch.equal(frozen_conv(x, frozen, bias, "relu"), expected)


def test_images_of_several_sizes(level):
    convolution = Convolution(5, 4, (3, 3), (1, 1), (1, 1))
    prepared, values, _ = random_weight(convolution, 0.5, torch.Generator().manual_seed(1))
    frozen = freeze_conv(values, prepared, grouped=False)
    for size in ((6, 7), (9, 20), (6, 7)):
        x = torch.randn(2, 4, *size)
        torch.testing.assert_close(frozen_conv(x, frozen), sparse_conv(x, values, prepared))
    assert set(frozen.words) == {(6, 7, False), (9, 20, False)}


def test_the_operator_is_sound():
    convolution = Convolution(5, 4, (3, 3), (2, 2), (1, 1))
    prepared, values, _ = random_weight(convolution, 0.5, torch.Generator().manual_seed(2))
    words = freeze_conv(values, prepared, grouped=True).words_for((6, 7))
    x, numbers = torch.randn(2, 4, 6, 7), conv_operators.numbers_of(convolution)
    arguments = (x, words, None, prepared.walk, numbers, True, "relu")
    torch.library.opcheck(torch.ops.openwork.frozen_conv, arguments)


def test_what_cannot_be_frozen_is_refused():
    convolution = Convolution(5, 4, (1, 1))
    prepared, values, _ = random_weight(convolution, 0.5, torch.Generator().manual_seed(3))
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        freeze_conv(values.double(), prepared, grouped=True)
    with pytest.raises(ValueError, match="values must be"):
        freeze_conv(values[:-1], prepared, grouped=True)
    frozen, x = freeze_conv(values, prepared, grouped=True), torch.zeros(1, 4, 2, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="no gradients"):
        frozen_conv(x, frozen)
