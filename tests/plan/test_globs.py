"""Parameters chosen by name."""

import pytest
from torch import nn

from openwork.plan import plan
from openwork.prune.magnitude import Magnitude
from openwork.train.static_random import StaticRandom
from tests.plan.models import Everything, mlp, rows


def test_globs_choose_the_parameters():
    method = Magnitude(
        sparsity=0.5, exclude=("0.*",), overrides={"*": 0.9, "2.weight": 0.0, "4.weight": 0.25}
    )
    found = rows(mlp(), method)
    assert (found["0.weight"].why, found["0.weight"].sparse) == ("excluded: by name", False)
    assert (found["2.weight"].why, found["2.weight"].sparse) == ("override: dense", False)
    assert (found["4.weight"].why, found["4.weight"].kept) == ("override", 60)  # the last match wins
    assert (found["0.weight"].kept, found["2.weight"].kept) == (200, 400)


def test_overrides_take_no_part_in_the_allocation():
    found = rows(mlp(), Magnitude(sparsity=0.5, overrides={"4.weight": 0.9}))
    assert [found[f"{i}.weight"].kept for i in (0, 2, 4)] == [100, 200, 8]
    all_by_hand = plan(mlp(), Magnitude(overrides={"0.*": 0.5, "2.*": 0.5, "4.*": 1.0}, kept=3))
    assert [row.kept for row in all_by_hand] == [100, 200, 0]


def test_include_and_override_reach_what_is_dense_by_default():
    model = Everything()
    assert rows(model, StaticRandom(include=("embed.*",)))["embed.weight"].sparse
    assert rows(model, StaticRandom(overrides={"mystery.*": 1 / 3}))["mystery.table"].kept == 6
    both = StaticRandom(include=("embed.*",), exclude=("embed.*",))
    assert rows(model, both)["embed.weight"].why == "excluded: by name"


@pytest.mark.parametrize("option", ["include", "exclude", "overrides"])
def test_a_glob_that_matches_nothing_lists_the_nearest_names(option):
    value = {"head.wieght": 0.5} if option == "overrides" else ("head.wieght",)
    model = nn.ModuleDict({"head": nn.Linear(3, 3), "body": nn.Linear(3, 3)})
    with pytest.raises(
        ValueError, match=rf"{option}: 'head.wieght' matches no .* nearest names are head.weight"
    ):
        plan(model, StaticRandom(**{option: value}))


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_bare_string_is_not_a_list_of_globs(option):
    with pytest.raises(ValueError, match=r"write (in|ex)clude=\('0\.\*',\)"):
        plan(mlp(), StaticRandom(**{option: "0.*"}))
