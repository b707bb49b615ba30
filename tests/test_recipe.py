"""Recipes are read as they are written, and what is not understood is refused with the nearest that would be."""

import dataclasses

import pytest

import openwork as ow
from openwork.method import registry
from openwork.recipe import read, stage


@pytest.mark.parametrize("cls", registry().values(), ids=lambda cls: cls.name)
def test_what_a_method_records_is_read_back(cls):
    needed = {
        f.name: 5
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    method = cls(**needed, exclude=("a.*",), overrides={"b.*": 0.5}, seed=3)
    assert stage(method.record()) == method


def test_values_with_options_of_their_own():
    method = ow.Magnitude(allocation=ow.Global(floor=0.01), pattern=ow.NM(2, 4))
    assert stage(method.record()) == method


def test_a_file_of_stages(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        """
        [[stage]]
        method = "wanda"
        sparsity = 0.6
        pattern = "2:4"
        overrides = { "*.down" = 0.5 }

        [[stage]]
        method = "perp-blocks"
        train = ["bias", "norm"]
        alpha = 8
        """
    )
    assert read(path) == [
        ow.Wanda(sparsity=0.6, pattern="2:4", overrides={"*.down": 0.5}),
        ow.PERPBlocks(train=("bias", "norm"), alpha=8),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[stage]]\nmethod = 'wanda'\nsparsty = 0.5", "stage 1: wanda has no 'sparsty': did you mean sparsity"),
        ("[[stage]]\nmethod = 'wanda'\n[[stage]]\nmethod = 'wnda'", "stage 2: no method is called 'wnda': did you mean wanda"),
        ("[[stages]]\nmethod = 'wanda'", "a recipe has no 'stages': did you mean stage?"),
        ("stage = 3", "one or more stages"),
        ("", "one or more stages"),
        ("[[stage]]\nsparsity = 0.5", "stage 1: name its method"),
        ("[[stage]]\nmethod = 'wanda'\nsparsity = 'half'", "sparsity is a number, such as 0.5; got 'half'"),
        ("[[stage]]\nmethod = 'wanda'\nsparsity = true", "sparsity is a number, such as 0.5; got True"),
        ("[[stage]]\nmethod = 'wanda'\nsparsity = 1.5", "stage 1: sparsity is a fraction"),
        ("[[stage]]\nmethod = 'perp'\nrank = 2.5", "rank is a whole number, such as 16; got 2.5"),
        ("[[stage]]\nmethod = 'perp'\ntrain = 'bias'", "train is a list"),
        ("[[stage]]\nmethod = 'wanda'\npattern = '5'", "unknown pattern '5'"),
        ("[[stage]]\nmethod = 'magnitude'\nallocation = { type = 'Globl' }", "there is no Globl; did you mean Global?"),
        ("[[stage]]\nmethod = 'lamp'", "no method is called 'lamp'"),
        ("[[stage]]\nmethod = 'magnitude'\nallocation = { type = 'Global', flor = 1 }", "has no 'flor': did you mean floor?"),
        ("[[stage", "not a TOML file"),
        ("x = " + "[" * 100_000, "not a TOML file"),
        ("x = " + "9" * 5000, "not a TOML file"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(text, said, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.toml") as raised:
        read(path)
    assert said in str(raised.value)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nosuch.toml")
