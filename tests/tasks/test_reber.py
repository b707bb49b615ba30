"""The grammar: what it allows, and how the task is drawn."""

import torch

from openwork.tasks.reber import LENGTH, SYMBOLS, allowed, reber


def test_what_is_allowed():
    assert all(allowed(text) for text in ("BTXSE", "BPVVE", "BTSSXXTVVE", "BPTVPSE"))
    assert not any(allowed(text) for text in ("BTPSE", "BVVE", "BTXS", "BTXSSE", "BE"))


def test_the_task_is_balanced_and_its_labels_are_true():
    task = reber(100, 60, 80, seed=4)
    assert [len(part) for part in (task.train, task.validation, task.test)] == [100, 60, 80]
    for part in (task.train, task.validation, task.test):
        assert int(part.targets.sum()) == len(part) // 2
        for rows, label in zip(part.inputs, part.targets.tolist(), strict=True):
            assert rows.shape == (LENGTH, len(SYMBOLS))
            places = rows.any(1).nonzero().flatten()
            assert torch.equal(places, torch.arange(int(places[0]), LENGTH))  # padded in front only
            text = "".join(SYMBOLS[int(row.argmax())] for row in rows[places])
            assert text[0] + text[-1] == "BE"
            assert allowed(text) == bool(label)


def test_the_seed_decides():
    one, same, other = reber(20, 5, 5, seed=1), reber(20, 5, 5, seed=1), reber(20, 5, 5, seed=2)
    assert torch.equal(one.train.inputs, same.train.inputs)
    assert not torch.equal(one.train.inputs, other.train.inputs)
    assert not torch.equal(one.train.inputs[:5], one.test.inputs)
