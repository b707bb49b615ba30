"""The comparison: equal size, equal cost, nothing run twice, and losses told."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openwork import DNW, GMP, SNIP, SRSTE, SSVI, GrowSCS, Magnitude, RandomSearch, RigL, StaticRandom
from openwork.cli import main
from openwork.compare import comparison as page
from openwork.compare import contest
from openwork.compare.comparison import Comparison, cells, run
from openwork.compare.contest import Contestant, train
from openwork.compare.field import UNSCALED, entry, field, nearest_nm, shelf
from openwork.compare.ledger import Ledger, key
from openwork.compare.perceptrons import Perceptrons
from openwork.layouts.linear import SparseLinear
from openwork.method import registry
from openwork.tasks import get
from openwork.train.keep_zeros import KeepZeros

MODEL = Perceptrons((64, 24, 10))
METHODS = (StaticRandom, RandomSearch, SNIP, Magnitude, GMP, RigL, DNW)


def small(**changes):
    options = {"methods": METHODS, "sparsities": (0.75,), "seeds": range(2), "steps": 9, "batch_size": 32}
    return Comparison(task=get("digits"), model=MODEL, **{**options, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def table(folder):
    return [*run(small(), folder)][-1]


def test_all_keep_as_many(table):
    kept = {line.method: line.kept for line in table}
    assert kept.pop("dense") == MODEL.connections == 64 * 24 + 240
    assert kept.pop("dense, small") == 64 * 6 + 60
    assert set(kept.values()) == {444}
    assert list(kept) == [UNSCALED, *(cls.name for cls in METHODS)]
    assert all(line.failed is None and len(line.accuracies) == 2 for line in table)


def test_differences_are_those_of_the_means(table):
    by_name = {line.method: line for line in table}
    rigl, dense, random = by_name["rigl"], by_name["dense"], by_name["static_random"]
    assert rigl.against_dense == pytest.approx(rigl.accuracy - dense.accuracy)
    assert rigl.against_random == pytest.approx(rigl.accuracy - random.accuracy)
    assert rigl.against_small == pytest.approx(rigl.accuracy - by_name["dense, small"].accuracy)
    assert rigl.accuracy == pytest.approx(sum(rigl.accuracies) / 2)
    assert dense.against_random is None
    assert cells(rigl)["- dense"].startswith(("+", "-"))


def test_a_finished_run_is_not_run_again(table, folder, monkeypatch):
    ran = []
    real = page.outcome
    monkeypatch.setattr(page, "outcome", lambda *told: ran.append(told[1].name) or real(*told))
    assert [*run(small(), folder)][-1] == table
    assert ran == []
    [*run(small(methods=(*METHODS, SRSTE)), folder)]
    assert ran == ["sr_ste 1:4"] * 2
    ran.clear()
    [*run(small(steps=8, methods=(SNIP,), seeds=(0,)), folder)]
    assert ran == ["dense", "dense, small", UNSCALED, "snip"]


def test_what_an_interruption_leaves_is_taken_up(tmp_path):
    going = run(small(seeds=(0,)), tmp_path)
    for _ in range(4):
        partial = next(going)
    going.close()
    assert len(partial) == 4
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["contestant"] for line in lines] == [
        "dense",
        "dense, small",
        UNSCALED,
        "static_random",
    ]
    assert [*run(small(seeds=(0,)), tmp_path)][3][:4] == partial


def test_a_run_that_comes_to_nothing_is_told(tmp_path):
    table = [*run(small(learning_rate=math.inf, methods=(StaticRandom,), seeds=(0,)), tmp_path)][-1]
    assert all("smaller learning rate" in line.failed and line.accuracy is None for line in table)
    assert cells(table[0])["accuracy %"] == ""


def test_every_method_that_decides_takes_part_and_fits():
    assert {cls.name for cls in shelf()} >= {
        "static_random",
        "random_search",
        "rigl",
        "snip",
        "acdc",
        "pgf_nm",
    }
    assert KeepZeros not in shelf()
    assert GrowSCS not in shelf()  # it would take away answers
    model = Perceptrons((64, 32, 32, 10))
    entered = field(shelf(), 0.9, 60, model)
    assert len(entered) == len(shelf()) + 2
    assert entered[1].method == StaticRandom(sparsity=0.9, steps=60, init="keep")
    assert entered[0].model.connections <= round(0.1 * model.connections)
    assert all(e.sparsity == 0.9 for e in entered[1:])


def test_the_entry_of_a_method():
    assert entry(RigL, 0.9, 300, (64,)) == Contestant("rigl", RigL(sparsity=0.9, steps=300, every=20), 1 / 2)
    assert entry(DNW, 0.9, 300, (64,)).method.every == 1
    assert entry(RandomSearch, 0.9, 300, (64,)).pruned_at == 0.0
    assert entry(SRSTE, 0.9, 300, (64, 48)).method.pattern == "1:16"
    assert all(
        cls.before_training for cls in map(registry().get, ("snip", "grasp", "synflow", "random_search"))
    )


def test_the_split_is_common_but_for_those_who_find_it():
    methods = shelf()
    same = field(methods, 0.9, 60, Perceptrons((64, 32, 32, 10)), split="erk")[2:]
    own = field(methods, 0.9, 60, Perceptrons((64, 32, 32, 10)), split=None)[2:]
    finders = {cls.name for cls in methods if cls.splits}
    assert finders >= {"snip", "grasp", "synflow", "snfs", "str"}
    assert not finders & {"gmp", "magnitude", "rigl", "acdc"}
    for shared, default, cls in zip(same, own, methods, strict=True):
        assert default.method.allocation == cls.allocation
        assert shared.method.allocation == (cls.allocation if cls.splits else "erk")
    assert entry(SSVI, 0.9, 300, (64,), examples=77).method.samples == 77


def test_the_split_decides_the_counts_of_layers(tmp_path):
    uniform, erk = (
        train(small().setting, entry(GMP, 0.75, 9, (64, 24), split=split), 0) for split in (None, "erk")
    )
    counts = [
        [m.weight_values.numel() for m in t.model.modules() if isinstance(m, SparseLinear)]
        for t in (uniform, erk)
    ]
    assert sum(counts[0]) == sum(counts[1])
    assert counts[0] != counts[1]
    assert {line.method for line in [*run(small(split=None, seeds=(0,)), tmp_path)][-1]} >= {"gmp", "snip"}
    assert sum("uniform" in line for line in (tmp_path / "runs.jsonl").read_text().splitlines()) == 3


@given(
    sparsity=st.floats(0.3, 0.97),
    inputs=st.lists(st.sampled_from([64, 96, 128, 160, 320]), min_size=1, max_size=3),
)
def test_the_nearest_pattern(sparsity, inputs):
    common = math.gcd(*inputs)
    legal = [
        (n, m) for m in range(2, 65) if common % m == 0 for n in range(1, m) if n / m <= 1 - sparsity + 1e-9
    ]
    if not legal:
        with pytest.raises(ValueError, match="no n:m pattern"):
            nearest_nm(sparsity, inputs)
        return
    found = nearest_nm(sparsity, inputs)
    assert (found.keep / found.of, -found.of) == max((n / m, -m) for n, m in legal)


@given(sizes=st.lists(st.integers(2, 60), min_size=3, max_size=4), part=st.floats(0.2, 1.0))
def test_the_widest_small_network(sizes, part):
    model = Perceptrons(tuple(sizes))
    total = round(part * model.connections)
    if total < model.sizes[0] + model.sizes[-1] + len(sizes) - 3:
        with pytest.raises(ValueError, match="keep more"):
            model.small(total)
        return
    found = model.small(total)
    assert found.connections <= total
    assert (found.sizes[0], found.sizes[-1]) == (sizes[0], sizes[-1])
    if len(sizes) == 3:
        assert found.connections + sizes[0] + sizes[-1] > total


@pytest.mark.parametrize("pruned_at", [0.0, 0.5])
def test_pruned_before_or_in_the_middle_and_trained_on(pruned_at):
    contestant = Contestant("magnitude", Magnitude(sparsity=0.75), pruned_at)
    trained = train(small().setting, contestant, 3)
    assert trained.run.steps == len(trained.run.losses) == 9
    stored = [m for m in trained.model.modules() if isinstance(m, SparseLinear)]
    assert trained.kept == sum(m.weight_values.numel() for m in stored) == 444
    assert train(small().setting, contestant, 3).run.losses == trained.run.losses


def test_what_is_left_starts_with_the_whole_learning_rate(monkeypatch):
    rates = []
    real = contest.fit

    def fit(model, task, *, optimizer, steps, **told):
        rates.append([optimizer.param_groups[0]["lr"]])
        done = real(model, task, optimizer=optimizer, steps=steps, **told)
        rates[-1].append(optimizer.param_groups[0]["lr"])
        return done

    monkeypatch.setattr(contest, "fit", fit)
    train(small().setting, Contestant("magnitude", Magnitude(sparsity=0.75), 0.5), 0)
    assert rates == [[0.003, pytest.approx(0.0)]] * 2


def test_keys_and_files():
    assert key({"a": 1, "b": [2]}) == key({"b": [2], "a": 1}) != key({"a": 1, "b": [3]})


RUN = '{"key": "x", "contestant": "set", "sparsity_asked": 0.9, "test_accuracy": 0.5}'


@pytest.mark.parametrize(
    "line", ["not a run", "[]", '{"key": 3}', RUN.replace("0.5", '"half"'), "[" * 100_000, "\udcff"]
)
def test_another_file_is_refused(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    path.write_text(f"{RUN}\n{line}\n", errors="surrogateescape")
    with pytest.raises(ValueError, match="line 2"):
        Ledger(path)


def test_the_command(tmp_path, capsys):
    told = [
        "compare",
        "rigl",
        "--sparsity",
        "0.75",
        "--seeds",
        "1",
        "--steps",
        "6",
        "--hidden",
        "16",
        "--examples",
        "200",
    ]
    assert main([*told, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["method"] for line in found["lines"]] == [
        "dense",
        "dense, small",
        UNSCALED,
        "static_random",
        "random_search",
        "rigl",
    ]
    assert "200 / " in found["task"]
    assert main([*told, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "- random" in out
    assert "rigl" in out
