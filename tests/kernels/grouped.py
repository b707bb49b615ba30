"""Random matrices whose rows agree in groups, and what every kernel for them must do."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openwork.kernels import native
from openwork.kernels.groups import Groups
from tests.kernels.matrices import of_mask

Build = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Groups]

ACTIVATION = {
    "none": lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
}


def held(build: Build, mask: Tensor, seed: int = 0) -> tuple[Groups, Tensor]:
    """(what `build` makes of random values at `mask`, the dense matrix)."""
    prepared = of_mask(mask)
    values = torch.randn(prepared.kept, generator=torch.Generator().manual_seed(seed))
    weight = torch.zeros(mask.shape)
    weight[mask] = values
    made = build(prepared.crow, prepared.col, values, (mask.shape[0], mask.shape[1]))
    values.zero_()  # frozen weights do not follow
    return made, weight


def check_equals_dense(
    groups: Groups, weight: Tensor, batch: int, activation: str, bias: bool = True
) -> None:
    """The kernel against a dense product in float64."""
    x = torch.randn(batch, weight.shape[1])
    b = torch.randn(weight.shape[0]) if bias else None
    expected = ACTIVATION[activation](
        F.linear(x.double(), weight.double(), None if b is None else b.double())
    )
    rounding = 5e-5 + 5e-8 * weight.shape[1]  # of a chain of additions, which grows with its length
    torch.testing.assert_close(groups.linear(x, b, activation).double(), expected, rtol=1e-5, atol=rounding)


def check_bits_do_not_depend_on_threads(build: Build, mask: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One to five threads, more parts than threads and fewer, whole tiles and shared ones."""
    monkeypatch.setattr(native, "SERIAL_WORK", 0)
    before = torch.get_num_threads()
    bias = torch.randn(mask.shape[0])
    for batch in (3, 150):
        x, results = torch.randn(batch, mask.shape[1]), []
        try:
            for threads, parts in [(1, 1), (2, 2), (3, 5), (5, 3)]:
                torch.set_num_threads(threads)
                monkeypatch.setattr("openwork.kernels.groups.part_count", lambda _, parts=parts: parts)
                results.append(held(build, mask)[0].linear(x, bias, "gelu"))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(results[0], other) for other in results[1:])


def check_shapes_and_errors(groups: Groups, weight: Tensor) -> None:
    """Leading dimensions, strides, the operator's contract, compilation, and what is refused."""
    rows, columns = weight.shape
    for shape in [(columns,), (2, 3, columns), (0, columns), (4, 0, columns)]:
        x = torch.randn(*shape[:-1], 2 * columns)[..., ::2]
        y = groups.linear(x)
        assert y.shape == (*shape[:-1], rows)
        torch.testing.assert_close(y, F.linear(x, weight), rtol=1e-5, atol=5e-5)
    x, bias = torch.randn(5, columns), torch.randn(2 * rows)[::2]
    arguments = (groups.arrays, rows, groups.height, groups.settings, groups.blocks, groups.kernel, "relu")
    torch.library.opcheck(torch.ops.openwork.grouped_linear, (x, bias, *arguments))
    compiled = torch.compile(lambda x: groups.linear(x, bias) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), groups.linear(x, bias) + 1)
    with pytest.raises(ValueError, match=rf"x must be \[\.\.\., {columns}\]"):
        groups.linear(x[:, :-1])
    with pytest.raises(ValueError, match="activation 'swish'"):
        groups.linear(x, None, "swish")
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        groups.linear(x.double())
    with pytest.raises(RuntimeError, match="no gradients"):
        groups.linear(x.requires_grad_())


def check_bad_matrices_are_refused(build: Build) -> None:
    """Nothing reaches a kernel that it would read out of bounds."""
    crow, col = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"columns must be 0 \.\.\. 4"):
        build(crow, col, torch.ones(2), (2, 5))
    with pytest.raises(ValueError, match=r"values must be \[2\]"):
        build(crow, col, torch.ones(3), (2, 6))
    with pytest.raises(TypeError, match=r"found torch\.float64"):
        build(crow, col, torch.ones(2).double(), (2, 6))
