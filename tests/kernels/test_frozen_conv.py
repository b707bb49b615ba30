import pytest
import torch
from hypothesis import given

from openwork.kernels import conv_operators
from openwork.kernels.conv import Convolution, sparse_conv
from openwork.kernels.frozen_conv import freeze_conv, frozen_conv
from openwork.kernels.planes import geometry
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


@pytest.mark.parametrize("size", [(8, 8), (16, 7), (4, 32)])
@pytest.mark.parametrize("outputs", [5, 33])
def test_channels_of_whole_tiles_are_read_where_they_lie(level, size, outputs):
    """1 x 1 kernels: also from an address that no vector begins at, and onto what is carried."""
    convolution = Convolution(outputs, 7, (1, 1))
    assert geometry(convolution, size, grouped=False).as_is
    prepared, values, dense = random_weight(convolution, 0.4, torch.Generator().manual_seed(4))
    frozen = freeze_conv(values, prepared, grouped=False)
    x = torch.randn(3, 7, *size)
    expected = torch.nn.functional.conv2d(x.double(), dense.double())
    shifted = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    for inputs in (x, shifted):
        torch.testing.assert_close(frozen_conv(inputs, frozen).double(), expected, rtol=1e-5, atol=1e-4)
    y = torch.randn(expected.shape)
    carried = y.clone()
    frozen.into(x, y, 3, None, y, "relu")
    torch.testing.assert_close(y.double(), (expected + carried).relu(), rtol=1e-5, atol=1e-4)
    elsewhere = torch.empty(y.numel() + 1)[1:].view(y.shape)
    frozen.into(x, elsewhere, 3)
    torch.testing.assert_close(elsewhere.double(), expected, rtol=1e-5, atol=1e-4)
