"""What layers read is what they read, in every kind of layer, and changes count by it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from openwork import DARE, merge_
from openwork.merging.inputs import layer_inputs
from openwork.merging.rescaling import bounded
from openwork.testing import batches, network
from tests.hf.tiny import gpt2, mixtral
from tests.merging.test_merging import same, state, tuned


def test_inputs_of_linear_layers_and_convolutions():
    model = network()
    before = state(model)
    data = [x for x, _ in batches(3)]
    found = layer_inputs(model, data)
    assert same(before, state(model))
    assert model.training
    x = torch.cat(data)
    patches = F.unfold(x, 3).transpose(1, 2).reshape(-1, 18)
    torch.testing.assert_close(found["0.weight"].mean, patches.mean(0))
    torch.testing.assert_close(found["0.weight"].square, patches.square().mean(0))
    hidden = model.eval()[:4](x).detach()
    torch.testing.assert_close(found["4.weight"].square, hidden.square().mean(0))
    assert found["4.weight"].count == len(x)
    assert found.keys() == {"0.weight", "4.weight", "7.weight"}


@pytest.mark.parametrize("make", [gpt2, mixtral])
def test_transformers(make):
    model = make()
    tokens = torch.randint(4, 40, (2, 10), generator=torch.Generator().manual_seed(0))
    found = layer_inputs(model, [{"input_ids": tokens}])
    widths = {name: model.get_parameter(name).shape for name in found}
    assert len(found) > 7
    for name, inputs in found.items():
        assert inputs.square.numel() == widths[name][0 if make is gpt2 and "lm_head" not in name else -1]
        assert (inputs.square >= inputs.mean.square() - 1e-12).all()


def test_changes_count_by_what_they_do_to_the_outputs():
    base = nn.Sequential(nn.Linear(30, 20, bias=False)).double()
    other = tuned(base, 1)
    scale = torch.logspace(-2, 2, 30, dtype=torch.float64)
    x = torch.randn(50, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * scale
    squares = {name: found.square for name, found in layer_inputs(base, [x]).items()}
    errors = []
    for inputs in (None, squares):
        model = copy.deepcopy(base)
        done = merge_(model, [other], DARE(sparsity=0.7, drop="smallest"), inputs=inputs)
        assert done.rows[0].kept == (180,)
        errors.append(float((model(x) - other(x)).square().mean().detach()))
    assert errors[1] < 0.2 * errors[0]
    change = (other[0].weight - base[0].weight).detach().abs() * squares["0.weight"].sqrt()
    least = change.flatten().sort(descending=True).values[179]
    assert torch.equal(model[0].weight != base[0].weight, change >= least)
    with pytest.raises(ValueError, match=r"0.weight has 30 inputs; got mean squares of 29"):
        merge_(base, [other], DARE(drop="smallest"), inputs={"0.weight": torch.ones(29)})


def test_a_divisor_for_every_layer():
    base = network()
    other = tuned(base, 1, size=1.0)
    found = layer_inputs(base, [x for x, _ in batches(2)])
    rescales = {}
    for name in ("4.weight", "7.weight"):
        change = (other.get_parameter(name) - base.get_parameter(name)).detach()
        rescales[name] = bounded(change, found[name].mean, 0.1)
    one, two = copy.deepcopy(base), copy.deepcopy(base)
    merge_(one, [other], DARE(sparsity=0.9, rescales=rescales))
    merge_(two, [other], DARE(sparsity=0.9, rescale=1.0))
    for name, q in rescales.items():
        start = base.get_parameter(name)
        torch.testing.assert_close((one.get_parameter(name) - start) * q, two.get_parameter(name) - start)
    with pytest.raises(ValueError, match="rescales"):
        DARE(rescales={"*": 2.0})
