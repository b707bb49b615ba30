"""Where blocks are found."""

import pytest
from torch import nn

from openwork.blocks import stacks
from openwork.tasks.gpt import gpt_small
from openwork.tasks.resnet import resnet20


def test_a_transformer_is_its_blocks():
    model = gpt_small(depth=3, width=16)
    (stack,) = stacks(model)
    assert stack.name == "blocks"
    assert list(stack.blocks) == ["blocks.0", "blocks.1", "blocks.2"]
    assert stack.blocks["blocks.1"] is model.blocks[1]


def test_a_residual_network_has_a_row_of_blocks_for_each_stage():
    found = stacks(resnet20())
    assert [len(s.blocks) for s in found] == [3, 3, 3]


def test_without_blocks_the_model_is_one():
    for model in (nn.Linear(3, 2), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.ModuleList()):
        (stack,) = stacks(model)
        assert stack.name == ""
        assert stack.blocks == {"": model}


def test_only_the_outermost_rows_count():
    inner = [nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))) for _ in range(3)]
    (stack,) = stacks(nn.Sequential(*inner))
    assert list(stack.blocks) == ["0", "1", "2"]


def test_a_container_can_be_named():
    model = gpt_small(depth=2, width=16)
    assert stacks(model, "blocks")[0].name == "blocks"
    assert [s.name for s in stacks(model, "blocks.0.mlp, blocks.1.mlp")] == ["blocks.0.mlp", "blocks.1.mlp"]
    assert stacks(model, "whole")[0].blocks == {"": model}
    with pytest.raises(ValueError, match=r"no such module; found by itself: blocks"):
        stacks(model, "layers")
    with pytest.raises(ValueError, match="holds no modules"):
        stacks(model, "head")
