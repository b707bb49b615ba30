"""The same rows for people and for programs."""

import io
import json

from rich.console import Console

from openwork.compare.table import Row, Speed, as_json, cells, layouts, table


def row(**changes):
    speed = Speed(dense=2.0, packed=0.5, dense_spread=(1.9, 2.1), packed_spread=(0.4, 0.6))
    values = {
        "method": "RigL [x]",
        "sparsity_asked": 0.9,
        "sparsity": 0.90004,
        "kept": 107_400,
        "accuracy_mean": 0.98125,
        "accuracy_std": 0.0049,
        "accuracies": (0.98, 0.9825),
        "validation_mean": 0.97,
        "train_seconds": 1.5,
        "file_bytes": 573_400,
        "parameter_bytes": 874_600,
        "train_state_bytes": 3_713_000,
        "latency_ms": {1: speed, 64: speed},
        "layouts": {1: {"fc1": "dense", "fc2": "csr"}, 64: {"fc1": "csr", "fc2": "csr"}},
    }
    return Row(**values | changes)


def test_json_has_the_ratio_and_survives_a_round_trip():
    plain = as_json(row())
    assert json.loads(json.dumps(plain)) == plain
    assert plain["latency_ms"]["64"]["ratio"] == 4.0
    assert plain["latency_ms"]["1"]["packed"] == 0.5
    assert plain["layouts"]["1"] == {"fc1": "dense", "fc2": "csr"}
    assert plain["accuracies"] == [0.98, 0.9825]


def test_cells_are_rounded_for_reading():
    found = cells(row())
    assert (found["asked"], found["sparsity"], found["kept"]) == ("90 %", "90.004 %", "107 400")
    assert found["accuracy %"] == "98.1 ± 0.5"
    assert found["ms at 64"] == "2 → 0.500\n4.0x"
    assert (found["file kB"], found["training kB"]) == ("573", "3 713")


def test_one_seed_has_no_spread():
    assert cells(row(accuracy_std=None))["accuracy %"] == "98.1"


def test_layouts_are_told_once_where_they_agree():
    assert layouts(row()) == "fc1 dense / csr\nfc2 csr"
    assert layouts(row(layouts={})) == ""


def test_the_table_prints_markup_as_text():
    out = io.StringIO()
    Console(file=out, width=300).print(table([row(), row(method="SET", sparsity_asked=0.95)]))
    lines = out.getvalue().splitlines()
    assert any("RigL [x]" in line and "98.1 ± 0.5" in line for line in lines)
    assert table([]).row_count == 0
