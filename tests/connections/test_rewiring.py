"""What an update makes of connections, whichever way it was made."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from openwork.connections import Rewiring, StoredConnections, connect
from openwork.growth import Random
from openwork.layouts.csr import CSR
from openwork.layouts.linear import SparseLinear
from openwork.patterns import Unstructured
from openwork.weights import prunable


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stored(outputs: int, inputs: int, kept: int, seed: int) -> StoredConnections:
    layer = SparseLinear(inputs, outputs, kept=kept, generator=generator(seed))
    model = nn.Sequential(layer)
    optimizer = torch.optim.Adam(model.parameters())
    layer(torch.randn(5, inputs, generator=generator(seed))).square().sum().backward()
    optimizer.step()
    connections = connect(prunable(model)[0], Unstructured(), [optimizer])
    assert isinstance(connections, StoredConnections)
    return connections


def held(c: StoredConnections) -> list[torch.Tensor]:
    layer = c.layer
    tensors = [layer.weight_crow, layer.weight_col, layer.weight_values.detach(), layer.weight_values.grad]
    return tensors + [holder[key] for holder, key in c._states()]


@given(
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 40)),
    density=st.floats(0, 1),
    share=st.sampled_from([0.0, 0.6, 0.95, 1.0]),
    growing=st.sampled_from([0.0, 0.5, 1.0, None]),
    seed=st.integers(0, 99),
)
def test_one_pass_and_sorted_lists_make_the_same(sizes, density, share, growing, seed):
    ways = []
    for one_pass in (True, False):
        c = stored(*sizes, round(density * sizes[0] * sizes[1]), seed)
        survivors = torch.rand(c.kept, generator=generator(seed)) < share
        free = c.numel - int(survivors.count_nonzero())
        vacant = None if growing is None else torch.tensor([int(growing * free)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StoredConnections, "_in_one_pass", one_pass)
            rewiring = c.rewired(survivors, Random(), generator(seed + 1), vacant)
            done = c.adopt(rewiring)
        ways.append([rewiring.positions, rewiring.origin.long(), done.fresh, *held(c)])
    assert all(torch.equal(one, other) for one, other in zip(*ways, strict=True))


def test_a_rewiring_is_the_same_from_positions_and_from_a_topology():
    positions, origin = torch.tensor([1, 4, 5, 11]), torch.tensor([0, -1, 2, -1])
    listed = Rewiring(positions, origin)
    cut = Rewiring(CSR.from_positions(positions, (3, 4)), origin.int())
    for one in (listed, cut):
        assert one.positions.tolist() == positions.tolist()
        assert one.fresh.tolist() == [4, 11]
        assert one.topology((3, 4)) == CSR.from_positions(positions, (3, 4))
        anew = one.beginning_anew(torch.tensor([True, True, False]))
        assert anew.origin.tolist() == [0, -1, -1, -1]
        assert one.origin.tolist() == origin.tolist()


def test_positions_out_of_place_change_nothing():
    c = stored(4, 6, 12, 0)
    before = [tensor.clone() for tensor in held(c)]
    for positions in ([3, 2], [2, 2], [0, 24]):
        with pytest.raises(ValueError, match="positions"):
            c.replace(torch.tensor(positions))
        assert all(torch.equal(one, other) for one, other in zip(held(c), before, strict=True))
