"""One message for every package that is not there."""

import sys

import pytest

from openwork.extras import MissingExtra, require


def test_what_is_installed_is_imported():
    assert require("json.decoder", extra="none", to="read").JSONDecoder


def test_what_is_missing_is_named_with_the_command_that_brings_it():
    with pytest.raises(
        MissingExtra, match=r"to fly, nosuchpackage is needed.*pip install 'openwork\[wings\]'"
    ):
        require("nosuchpackage.part", extra="wings", to="fly")


def test_a_package_that_is_blocked_counts_as_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "calendar", None)
    with pytest.raises(MissingExtra, match="calendar is needed"):
        require("calendar", extra="time", to="tell the day")


def test_a_package_that_fails_for_another_reason_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import nosuchdependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nosuchdependency") as raised:
        require("half_installed", extra="half", to="run")
    assert not isinstance(raised.value, MissingExtra)
