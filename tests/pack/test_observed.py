import pytest
import torch
from torch import nn

import openwork as ow


@pytest.mark.parametrize("nothing", [3, "x", None, [1, 2], {"a": 1}, ()])
def test_example_inputs_hold_a_tensor(nothing):
    model = nn.Sequential(nn.Linear(8, 4)).train()
    with pytest.raises(TypeError, match=f"Found {type(nothing).__name__} without any tensor"):
        ow.pack_(model, nothing)
    assert model.training
    assert type(model[0]) is nn.Linear


def test_a_dict_of_arguments_will_do():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, *, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    model = Named()
    x = torch.randn(3, 8)
    expected = model(x=x)
    assert len(ow.pack_(model, {"x": x}, seconds=0.01, cache=False)) == 1
    torch.testing.assert_close(model(x=x), expected, rtol=1e-4, atol=1e-5)


def test_an_empty_batch_measures_nothing():
    model = nn.Sequential(nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"or on no samples: there is nothing to pack\. Pass a batch"):
        ow.pack_(model, torch.randn(0, 8))
    assert type(model[0]) is nn.Linear
