"""The demo as a whole on a small contest: its files, its interruption, its report."""

import json
import re
import sys

import pytest

import openwork as ow
from openwork.compare import demo as page_of_demo
from openwork.compare.demo import demo

from .small import contestants, setting


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(page_of_demo, "setting", lambda steps: setting())
    monkeypatch.setattr(page_of_demo, "contestants", lambda sparsities, steps: contestants())
    monkeypatch.setattr(page_of_demo, "BATCHES", (1, 20))
    monkeypatch.setattr(page_of_demo, "SECONDS", 0.01)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


ALL = ["metrics.jsonl", "model.safetensors", "report.html", "run.json"]


def test_everything_is_written_and_agrees(small, tmp_path):
    outcome = demo(tmp_path / "out", seeds=1)
    assert outcome.complete
    assert names(tmp_path / "out") == ALL
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["rows"] == outcome.as_json()["rows"]
    assert run["complete"] is True
    assert [record["method"] for record in run["methods"]] == ["static_random", "rigl", "gmp", "magnitude"]
    events = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    trained = [event for event in events if event["event"] == "trained"]
    assert [event["test_accuracy"] for event in trained] == [row["accuracy_mean"] for row in run["rows"]]
    state = ow.load(tmp_path / "out" / "model.safetensors")
    assert state["fc1.weight"].shape == (40, 64)


def interrupt_after(monkeypatch, count):
    compete = page_of_demo.compete

    def interrupted(*args, **options):
        found = compete(*args, **options)
        for _ in range(count):
            yield next(found)
        raise KeyboardInterrupt

    monkeypatch.setattr(page_of_demo, "compete", interrupted)


def test_an_interruption_keeps_what_is_known(small, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 3)
    outcome = demo(tmp_path / "out", seeds=1)
    assert not outcome.complete
    assert [row.method for row in outcome.rows] == ["dense", "static random", "RigL"]
    assert names(tmp_path / "out") == ALL
    assert json.loads((tmp_path / "out" / "run.json").read_text())["complete"] is False
    assert "interrupted" in (tmp_path / "out" / "report.html").read_text()


def test_an_interruption_before_anything_is_known_leaves_nothing(small, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path / "out", seeds=1)
    assert not (tmp_path / "out").exists()


def test_the_report_asks_nobody(small, tmp_path):
    pytest.importorskip("altair")
    demo(tmp_path / "out", seeds=1)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "default-src 'none'" in html
    body = html[html.index("<body>") : html.index("<script")]
    assert body.count("<details>") == 4
    assert body.count("<table>") == 5
    assert not re.search(r"<(script|img|link|iframe)[^>]*(src|href)=", html[: html.index("<script")])
    specs = json.loads(re.search(r"const specs = (.*);\n", html).group(1))
    assert len(specs) == 4
    bundle = pytest.importorskip("vl_convert").javascript_bundle()
    assert bundle in html  # code that is escaped does not run
    assert "</script" not in bundle
    assert "static random" in body


def test_without_the_extra_the_report_has_its_table_and_says_so(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    demo(tmp_path / "out", seeds=1)
    html = (tmp_path / "out" / "report.html").read_text()
    assert "pip install &#x27;openwork[report]&#x27;" in html
    assert "<script" not in html
    assert html.count("<table>") == 1


def test_a_file_in_the_way_is_named(small, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(NotADirectoryError, match="out is a file"):
        demo(tmp_path / "out")


def test_at_least_one_seed(tmp_path):
    with pytest.raises(ValueError, match="at least one seed"):
        demo(tmp_path, seeds=0)


def test_the_command_prints_one_json_value(small, tmp_path, capsys):
    from openwork.cli import main

    assert main(["demo", "--json", "--seeds", "1", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert {"rows", "machine", "complete"} <= printed.keys()
    assert "best sparse network" in captured.err
    row = printed["rows"][1]
    assert {
        "method",
        "sparsity_asked",
        "sparsity",
        "kept",
        "accuracy_mean",
        "file_bytes",
        "layouts",
    } <= row.keys()
    assert set(row["latency_ms"]["20"]) >= {"dense", "packed", "ratio"}


@pytest.mark.slow
def test_the_quick_demo_runs_as_it_is(tmp_path):
    outcome = demo(tmp_path, quick=True)
    assert [row.method for row in outcome.rows][:3] == ["dense", "static random", "SET"]
    assert min(row.accuracy_mean for row in outcome.rows) > 0.9
