"""``openwork plan --training`` tells how much memory training would take."""

import json

import pytest

from openwork import cli


def test_memory_of_training(capsys):
    arguments = [
        "plan",
        "lenet_300_100",
        "set",
        "--sparsity",
        "0.9",
        "--training",
        "--optimizer",
        "sgd",
        "--batch",
        "32",
    ]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "training with sgd, batch 32" in shown
    assert "dense      masked      stored" in shown
    assert cli.main([*arguments, "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["dense"]["parameters"] == 4 * (784 * 300 + 300 * 100 + 100 * 10 + 410)
    assert memory["dense"]["optimizer"] == 0
    assert memory["stored"]["parameters"] == 4 * (26620 + 410)
    assert memory["stored"]["peak"] < memory["dense"]["peak"]


def test_a_shape_that_cannot_be_told_is_asked_for(capsys):
    assert cli.main(["plan", "resnet20", "set", "--training"]) != 0
    assert "--input 3 32 32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("json:nothing", "json has no function or class 'nothing'"),
        ("json:dumps", "missing a required argument: 'obj': write a function that needs none"),
        ("json:JSONDecoder", "returned JSONDecoder, and a model is a torch.nn.Module"),
    ],
)
def test_a_factory_that_makes_no_model_is_told_why(model, told, capsys):
    assert cli.main(["plan", model, "set"]) == 1
    assert told in capsys.readouterr().err
