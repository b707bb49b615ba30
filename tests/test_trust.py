"""What a user may rely on where things go wrong: killed, forked, interrupted, without permission or without kernels."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

import openwork as ow
from openwork.kernels import native
from openwork.sparsifier import SparsifierWarning

PACKAGE = Path(ow.__file__).parent
POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a Unix")
TIMES = [2, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]


def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


# Killed while it writes.

SAVES = """
import sys, torch, openwork as ow
from torch import nn
folder, number = sys.argv[1], 0
model = nn.Sequential(nn.Linear(300, 300), ow.SparseLinear(300, 300, sparsity=0.9))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
print("ready", flush=True)
while True:
    number += 1
    for p in model.parameters():
        p.data.fill_(number)
    ow.save(model, f"{folder}/model")
    ow.save_checkpoint(f"{folder}/run", model=model, optimizer=optimizer, extra={"number": number})
"""

RECORDS = """
import sys
from pathlib import Path
from openwork.compare.record import Record
record, number = Record(Path(sys.argv[1])), 0
print("ready", flush=True)
while True:
    number += 1
    record.conclude({"numbers": [number] * 20_000}, "<html>" + str(number) * 50_000 + "</html>")
"""


def killed(code: str, folder: Path, after: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", code, folder],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        process.stdout.readline()
        time.sleep(after)
        process.kill()


@pytest.mark.parametrize("times", TIMES)
def test_a_kill_leaves_a_whole_file_or_none(tmp_path: Path, times: int) -> None:
    chance = random.Random(times)
    for turn in range(times):
        folder = tmp_path / str(turn)
        folder.mkdir()
        killed(SAVES, folder, chance.uniform(0, 0.15))
        if (folder / "model").exists():
            state = ow.load(folder / "model")
            assert {len(tensor[tensor != 0].unique()) for tensor in state.values()} == {1}
            assert len({float(tensor.max()) for tensor in state.values()}) == 1
        if (folder / "run").exists():
            model = nn.Sequential(nn.Linear(300, 300), ow.SparseLinear(300, 300, sparsity=0.9))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            number = ow.load_checkpoint(folder / "run", model=model, optimizer=optimizer)["number"]
            assert all(bool((p == number).all()) for p in model.parameters())
        left = {entry.name for entry in folder.iterdir()} - {"model", "run"}
        # Our temporary file, or the one that safetensors writes before it gives it our temporary name.
        assert [n for n in left if not re.fullmatch(r"\.openwork-[0-9a-f]{16}\.tmp|\.tmp\w{6}", n)] == []


@pytest.mark.parametrize("times", TIMES)
def test_a_kill_leaves_whole_records(tmp_path: Path, times: int) -> None:
    chance = random.Random(times)
    for turn in range(times):
        folder = tmp_path / str(turn)
        killed(RECORDS, folder, chance.uniform(0, 0.1))
        if (folder / "run.json").exists():
            assert len(json.loads((folder / "run.json").read_text())["numbers"]) == 20_000
        if (folder / "report.html").exists():
            assert (folder / "report.html").read_text().endswith("</html>")


# Forked, spawned, crowded.


def compute(layer: ow.SparseLinear, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return layer(x)


def in_child(layer: ow.SparseLinear, x: torch.Tensor, expected: bytes) -> None:
    os._exit(0 if compute(layer, x).numpy().tobytes() == expected else 3)


@pytest.mark.parametrize(
    "method", [pytest.param("fork", marks=POSIX), pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_kernels_work_in_another_process(method: str) -> None:
    """Forked after threads have worked here, which OpenMP alone answers by waiting for ever."""
    layer = ow.SparseLinear(400, 300, sparsity=0.8, generator=torch.Generator().manual_seed(0))
    x, threads = torch.ones(64, 400), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = compute(layer, x).numpy().tobytes()
        child = multiprocessing.get_context(method).Process(target=in_child, args=(layer, x, expected))
        child.start()
        child.join(60)
        if child.exitcode is None:
            child.kill()
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(threads)
    assert native.threads(10**9) == torch.get_num_threads()


def test_more_threads_than_cores_change_nothing() -> None:
    layer = ow.SparseLinear(400, 300, sparsity=0.8, generator=torch.Generator().manual_seed(0))
    x, threads = torch.ones(70, 400), torch.get_num_threads()
    outputs = []
    try:
        for count in (1, 32):
            torch.set_num_threads(count)
            outputs.append(
                compute(ow.SparseLinear.from_values(layer.topology, layer.weight_values.detach()), x)
            )
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*outputs)


# Interrupted.

TRAINS = """
import sys, openwork.compare.demo as page
page.STEPS, page.SECONDS = 40, 0.01
from openwork.cli import main
print("ready", flush=True)
sys.exit(main(["demo", "--quick", "--out", sys.argv[1]]))
"""


@POSIX
@pytest.mark.parametrize("after", [0.0, pytest.param(4.0, marks=pytest.mark.slow)])
def test_ctrl_c_ends_a_demo_in_words(tmp_path: Path, after: float) -> None:
    pytest.importorskip("sklearn")
    with subprocess.Popen(
        [sys.executable, "-c", TRAINS, tmp_path / "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
    ) as process:  # fmt: skip
        process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=90)
    # 130 if there was nothing to show yet; 0 if the demo could end early with what it knew.
    assert process.returncode in (130, 0), told
    assert "interrupted" in told or process.returncode == 0
    assert "Traceback" not in told
    if (tmp_path / "out" / "run.json").exists():
        json.loads((tmp_path / "out" / "run.json").read_text())


# Not allowed, not there.


@POSIX
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    """As a user who is not root, where the tests run as root."""
    folder = tmp_path / "closed"
    folder.mkdir()
    ow.save(nn.Linear(2, 2), folder / "m")
    before = (folder / "m").read_bytes()
    folder.chmod(0o555)
    child = os.fork()
    if not child:
        status = 1
        try:
            if os.geteuid() == 0:
                for parent in (folder, *folder.parents[:5]):
                    if parent.stat().st_uid == 0 and parent.name.startswith(
                        ("closed", "test_", "py", "popen")
                    ):
                        parent.chmod(parent.stat().st_mode | 0o055)  # pytest keeps its folders to itself
                os.setgid(65534)
                os.setuid(65534)
            ow.save(nn.Linear(2, 2), folder / "m")
        except ow.FileError as error:
            status = 0 if "Permission denied" in str(error) or "ermission" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    folder.chmod(0o755)
    assert (folder / "m").read_bytes() == before
    assert [entry.name for entry in folder.iterdir()] == ["m"]


def test_data_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    code = "import openwork.tasks as tasks; tasks.get('mnist')"
    done = run(code, OPENWORK_DATA=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert "MissingData: the data set mnist needs a file that is not on this machine" in done.stderr
    assert "download=True" in done.stderr


def test_without_native_kernels_the_numbers_are_the_same() -> None:
    code = (
        "import sys, torch, openwork as ow; from openwork.kernels import isa\n"
        "g = torch.Generator().manual_seed(0)\n"
        "layer = ow.SparseLinear(50, 40, sparsity=0.8, generator=g)\n"
        "y = layer(torch.randn(9, 50, generator=g)); y.square().sum().backward()\n"
        "print(isa(), 'openwork.kernels._native' in sys.modules); torch.save([y.detach(), layer.weight_values.grad], sys.argv[1])"
    )
    found = []
    for wanted in ("0", "1"):
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"openwork-trust-{os.getpid()}-{wanted}"
        done = run(code, path, OPENWORK_NATIVE=wanted)
        assert done.returncode == 0, done.stderr
        assert (done.stdout == "reference False\n") == (wanted == "0")
        found.append(torch.load(path, weights_only=True))
        path.unlink()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# Numbers.


@pytest.mark.parametrize("stored", [False, True], ids=["masked", "stored"])
def test_a_layer_that_loses_its_last_connection_is_told(stored: bool) -> None:
    """Before it starts where it is planned, and at the step where it happens."""
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2))
    planned = ow.plan(model, ow.SET(sparsity=0.999, allocation="uniform"))
    assert planned.collapsed == ("2.weight",)
    assert "2.weight keeps no connection, so nothing passes it" in str(planned)
    method = ow.GMP(sparsity=0.95, allocation="global", steps=4, every=1, begin=0.0, until=0.5)
    if stored:
        ow.to_sparse_(model, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier = ow.attach(model, optimizer, method)
    with torch.no_grad():
        (model[2].weight_values if stored else model[2].weight).mul_(1e-6)
    assert "2.weight keeps no connection" not in sparsifier.summary()

    def train() -> None:
        for _ in range(4):
            model(torch.ones(3, 40)).sum().backward()
            optimizer.step()

    with pytest.warns(SparsifierWarning, match=r"collapsed a layer: 2.weight keeps no connection"):
        train()
    assert not sparsifier.connections["2.weight"].kept
    assert "2.weight keeps no connection" in sparsifier.summary()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("stored", [False, True], ids=["masked", "stored"])
def test_every_precision_keeps_counts_and_zeros_while_it_trains(stored: bool, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)).to(dtype)
    method = ow.RigL(sparsity=0.8, steps=8, every=2, until=1.0)
    if stored:
        ow.to_sparse_(model, method)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-4)
    sparsifier = ow.attach(model, optimizer, method)
    wanted = {row.name: row.kept for row in sparsifier.plan.sparse}
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(6, 20, generator=g).to(dtype)).float().square().mean().backward()
        optimizer.step()
    assert sparsifier.updates == 3
    assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == wanted
    for layer, mask in zip(model[::2], sparsifier.masks.values(), strict=True):
        assert layer.weight.dtype == dtype
        assert layer.weight.isfinite().all()
        assert not layer.weight[~mask].any()


@pytest.mark.parametrize("stored", [False, True], ids=["masked", "stored"])
def test_training_has_the_same_bits_on_one_thread_and_on_several(stored: bool) -> None:
    def trained(threads: int) -> dict[str, torch.Tensor]:
        torch.set_num_threads(threads)
        g = torch.Generator().manual_seed(0)
        model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 10))
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=g) / 10)
        method = ow.RigL(sparsity=0.8, steps=6, every=2, until=1.0)
        if stored:
            ow.to_sparse_(model, method)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        ow.attach(model, optimizer, method)
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(64, 300, generator=g)).square().mean().backward()
            optimizer.step()
        return model.state_dict()

    before = torch.get_num_threads()
    try:
        one, three = trained(1), trained(3)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(tensor, three[name]) for name, tensor in one.items())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_one_core_is_enough() -> None:
    """Two threads that share it take turns; nothing waits for a core that there is not."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import torch, openwork as ow; torch.set_num_threads(2)\n"
        "layer = ow.SparseLinear(400, 300, sparsity=0.8, generator=torch.Generator().manual_seed(0))\n"
        "layer(torch.ones(64, 400)).sum().backward(); print(layer.weight_values.grad.shape[0])"
    )
    done = run(code, OMP_NUM_THREADS="2")
    assert (done.stdout, done.returncode) == ("24000\n", 0), done.stderr


# No room.


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("write", ["save", "save_checkpoint", "record"])
def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    """Flushing fails as it does where the last block is gone."""
    model = nn.Linear(30, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    from openwork.compare.record import Record

    writes = {
        "save": lambda: ow.save(model, tmp_path / "file"),
        "save_checkpoint": lambda: ow.save_checkpoint(tmp_path / "file", model=model, optimizer=optimizer),
        "record": lambda: Record(tmp_path).conclude({"n": 1}),
    }
    writes[write]()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with torch.no_grad():
        model.weight.add_(1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ow.FileError, match=r"No space left on device.*has the disk room.*untouched"):
        writes[write]()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# What the package is made of.


def test_nothing_in_the_package_runs_what_it_reads() -> None:
    """No pickle, no eval, no shell; torch.load only with weights_only=True."""
    forbidden = re.compile(
        r"\bimport (pickle|marshal|shelve|dill|joblib)\b|\bfrom (pickle|marshal|shelve|dill|joblib)\b"
        r"|(?<![\w.])(eval|exec|compile)\(|\bos\.(system|popen)\(|shell=True|yaml\.load\(|trust_remote_code|hub\.load"
    )
    pages = sorted(PACKAGE.rglob("*.py"))
    assert len(pages) > 100
    for page in pages:
        text = page.read_text()
        assert not forbidden.search(text), f"{page}: {forbidden.search(text)}"
        for call in re.finditer(r"torch\.load\(", text):
            assert "weights_only=True" in text[call.start() : text.index("\n", call.start() + 80)], page
