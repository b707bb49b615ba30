"""Methods are values, found by name."""

import dataclasses
import json

import pytest
import torch

from openwork.allocation import Global
from openwork.method import Method, get, method, pages, registry, require_kind
from openwork.patterns import NM
from openwork.prune.magnitude import Magnitude
from openwork.schedules import Cosine
from openwork.train.gmp import GMP
from openwork.train.rigl import RigL
from openwork.train.set import SET
from openwork.train.static_random import StaticRandom


@pytest.mark.parametrize(
    ("value", "told"),
    [(95, r": for 95 % write 0\.95"), ("0.9", "write it as a number"), (1, "with 1 nothing would be left")],
)
def test_a_sparsity_that_is_no_fraction_says_what_was_meant(value, told):
    with pytest.raises(ValueError, match=rf"^sparsity is a fraction in \[0, 1\); got .*{told}"):
        Magnitude(sparsity=value)


def test_what_is_no_method_of_the_kind_is_told_what_to_write():
    require_kind(SET(), (RigL, SET), "is neither")
    with pytest.raises(TypeError, match=r"^SET is no pruning$"):
        require_kind(SET(), Magnitude, "is no pruning")
    with pytest.raises(TypeError, match=r"a method is a value, and RigL is its class: write RigL\(\.\.\.\)"):
        require_kind(RigL, RigL, "")
    with pytest.raises(TypeError, match=r"got str: openwork\.method\.get\('rigl'\) finds a class"):
        require_kind("rigl", Method, "")
    with pytest.raises(TypeError, match=r"got Linear$"):
        require_kind(torch.nn.Linear(1, 1), Method, "")


def test_options_are_checked_when_a_method_is_made():
    for wrong in (
        {"sparsity": 1.0},
        {"sparsity": -0.1},
        {"sparsity": float("nan")},
        {"overrides": {"a": 1.5}},
        {"pattern": "2-4"},
        {"allocation": "urk"},
    ):
        with pytest.raises(ValueError, match=r"fraction|unknown"):
            Magnitude(**wrong)
    for wrong in (
        {"sparsity": "0.5"},
        {"sparsity": None},
        {"kept": 0.5},
        {"kept": (3,)},
        {"kept": True},
        {"include": (3,)},
        {"exclude": None},
        {"overrides": None},
        {"overrides": {3: 0.5}},
        {"overrides": {"a": "0.5"}},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* (is|got) "):
            Magnitude(**wrong)
    for cls, wrong in (
        (SET, {"drop": 1.5}),
        (RigL, {"drop": Cosine(start=2.0)}),
        (SET, {"until": 2}),
        (RigL, {"grow": "everywhere"}),
        (GMP, {"initial": -1}),
        (Magnitude, {"rounds": 0}),
    ):
        with pytest.raises(ValueError, match=r"fraction|unknown|at least 1"):
            cls(**wrong)


def test_a_record_is_plain_data():
    m = RigL(
        sparsity=0.8,
        allocation=Global(floor=0.1),
        pattern=NM(2, 4),
        exclude=("a.*",),
        overrides={"b": 0.5},
        steps=7,
    )
    record = m.record()
    assert json.loads(json.dumps(record)) == record
    assert record["method"] == "rigl"
    assert record["allocation"] == {"type": "Global", "floor": 0.1}
    assert record["pattern"] == {"type": "NM", "keep": 2, "of": 4}
    assert record["exclude"] == ["a.*"]
    assert record["drop"]["type"] == "Cosine"
    assert record.keys() == {"method"} | {f.name for f in dataclasses.fields(RigL)}


def test_generators_depend_on_seed_and_purpose_alone():
    def numbers(seed, purpose):
        return torch.rand(4, generator=SET(seed=seed).generator(purpose)).tolist()

    assert numbers(3, "a.weight") == numbers(3, "a.weight")
    everything = [
        numbers(seed, purpose) for seed in (0, 1, 256, -1, 2**40) for purpose in ("", "a", "b", "updates")
    ]
    assert len({tuple(n) for n in everything}) == len(everything)


def test_every_page_is_found():
    methods = registry()
    assert {
        "set",
        "rigl",
        "gmp",
        "static_random",
        "keep_zeros",
        "magnitude",
        "snip",
        "grasp",
        "synflow",
    } <= methods.keys()
    assert list(methods) == sorted(methods)
    assert get("rigl") is RigL
    assert get(" Static-Random ") is StaticRandom
    for name, kind, line, paper in pages():
        assert methods[name].kind == kind
        assert line
        assert not line.endswith(":")
        assert paper


def test_misspelled_names_get_a_hint():
    with pytest.raises(ValueError, match="did you mean rigl"):
        get("rigel")
    with pytest.raises(ValueError, match=r"choose one of .*gmp, .*grasp"):
        get("zzzzzz")


def test_two_methods_cannot_have_one_name():
    class Impostor(Method):
        """Not RigL."""

    with pytest.raises(ValueError, match="two methods want the name 'rigl'"):
        method(paper="none", kind="train", name="rigl")(Impostor)
    assert get("rigl") is RigL


def test_reduced_to_a_simpler_method():
    m = RigL(sparsity=0.7, seed=3, steps=10, grow="random").reduced_to(SET)
    assert m == SET(
        sparsity=0.7,
        seed=3,
        steps=10,
        drop=RigL().drop,
        every=100,
        until=0.75,
        drop_by="magnitude",
        replace=True,
    )
    assert m.reduced_to(StaticRandom) == StaticRandom(sparsity=0.7, seed=3, steps=10)


def test_limits_are_pairs_of_methods():
    for cls in registry().values():
        for setting, simpler in cls().limits():
            assert type(setting) is cls
            assert isinstance(setting, type(simpler))
