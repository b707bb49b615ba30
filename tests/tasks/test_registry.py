"""Real data, where it is on this machine: sizes, splits, and what is known about its content."""

import subprocess
import sys

import pytest
import torch

from openwork import tasks
from openwork.tasks.sources import MissingData

SIZES = {
    "digits": (1077, 270, 450),
    "mnist": (55_000, 5_000, 10_000),
    "fashion_mnist": (55_000, 5_000, 10_000),
    "cifar10": (45_000, 5_000, 10_000),
    "tiny_shakespeare": (6971, 871, 871),
    "wikitext2": (16317, 1700, 1918),
}


def task_or_skip(name):
    try:
        return tasks.get(name)
    except (MissingData, ImportError) as reason:
        pytest.skip(str(reason))


LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in tasks.names()[1:]]


@pytest.mark.parametrize("name", ["digits", *LARGE])
def test_a_task_has_its_parts(name):
    task = task_or_skip(name)
    parts = (task.train, task.validation, task.test)
    assert (task.name, tuple(len(part) for part in parts)) == (name, SIZES[name])
    for part in parts:
        assert part.targets.dtype == torch.int64
        assert int(part.targets.min()) >= 0
        assert int(part.targets.max()) < len(task.classes)
    if task.kind == "classification":
        assert len(task.classes) == 10
        assert int(torch.bincount(task.train.targets).min()) > 0
        assert abs(float(task.train.inputs.mean())) < 1e-3
        assert abs(float(task.train.inputs.std()) - 1) < 1e-3


def test_digits_are_scikit_learns():
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    task = tasks.get("digits")
    parts = (task.train, task.validation, task.test)
    images = torch.cat([part.inputs for part in parts])
    levels = images.unique()
    assert len(levels) == 17
    counts = torch.bucketize(images, levels).view(len(images), 64)
    rows = {
        (*row, int(target))
        for row, target in zip(counts.tolist(), torch.cat([p.targets for p in parts]), strict=True)
    }
    assert rows == {
        (*map(int, row), int(target)) for row, target in zip(bundled.data, bundled.target, strict=True)
    }


def test_digits_do_not_import_scikit_learn():
    # its OpenMP runtime would fight with that of torch
    code = "import sys, openwork.tasks as t; t.get('digits'); print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("openwork.tasks.digits.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"openwork\[sklearn\]"):
        tasks.get("digits")


@pytest.mark.slow
def test_mnist_begins_as_it_always_did():
    assert task_or_skip("mnist").test.targets[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.parametrize("name", tasks.names()[1:])
def test_nothing_is_downloaded_unasked(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OPENWORK_DATA", raising=False)
    monkeypatch.setattr("openwork.tasks.sources.urlopen", lambda *_, **__: pytest.fail("a request was made"))
    with pytest.raises(MissingData):
        tasks.get(name)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="no task is called 'minst'") as caught:
        tasks.get("minst")
    assert caught.value.__notes__ == ["did you mean mnist?"]
    assert tasks.get("Digits").name == "digits"
