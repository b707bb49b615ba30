"""What a saved state must be before a method goes on from it."""

import copy

import pytest
import torch

from openwork.resuming import require_same_method, require_well_formed, saved
from openwork.train.rigl import RigL
from openwork.train.set import SET

METHOD = SET(sparsity=0.5, steps=10)


def state():
    return saved(METHOD, 3, torch.Generator().manual_seed(7), {"velocity": torch.arange(4.0)})


def test_what_was_saved_is_gone_on_from():
    found = state()
    require_well_formed(found, "a course")
    require_same_method(found, METHOD, "Take")
    assert found["step"] == 3
    again = torch.Generator()
    again.set_state(found["generator"])
    assert again.initial_seed() == 7


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("format", "1"),
        ("format", True),
        ("step", -1),
        ("step", 2.0),
        ("method", "set"),
        ("method", {"method": "set", "hook": print}),
        ("state", [torch.zeros(2)]),
        ("state", {"velocity": [1.0]}),
        ("state", {"velocity": torch.zeros(1).expand(10**9)}),
        ("state", {"velocity": torch.zeros(2, device="meta")}),
    ],
)
def test_what_nobody_has_saved_is_named(key, wrong):
    with pytest.raises(ValueError, match=rf"not the state_dict\(\) of a course: '{key}'"):
        require_well_formed(state() | {key: wrong}, "a course")
    lacking = state()
    del lacking[key]
    with pytest.raises(ValueError, match=f"'{key}' is NoneType"):
        require_well_formed(lacking, "a course")


def test_another_format_and_another_generator_are_refused():
    with pytest.raises(ValueError, match="of format 2, and this openwork reads format 1"):
        require_well_formed(state() | {"format": 2}, "a course")
    with pytest.raises(ValueError, match="random generator cannot be restored"):
        require_well_formed(state() | {"generator": torch.zeros(3, dtype=torch.uint8)}, "a course")


def test_another_method_is_told_by_its_options():
    for other, told in (
        (SET(sparsity=0.25, steps=10), "sparsity: saved 0.5, now 0.25"),
        (RigL(steps=10), "method: saved"),
    ):
        with pytest.raises(
            ValueError, match=rf"of another run: .*{told}.*\. Take the method that was saved$"
        ):
            require_same_method(copy.deepcopy(state()), other, "Take")
