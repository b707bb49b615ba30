"""Archives of torch.save are read when they are whole, small, and run nothing."""

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import openwork as ow
from openwork import archives
from openwork.tasks import sources


@dataclass
class Pair:
    first: torch.Tensor
    second: object


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def path(tmp_path):
    return tmp_path / "archive"


def rewritten(path, change, how=zipfile.ZIP_STORED):
    """The archive with its parts changed and its checksums right again."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("mmap", [False, True])
def test_what_was_saved_comes_back(path, mmap):
    x = torch.arange(12.0).view(3, 4)
    torch.save(
        {"x": x.T, "n": [1, None, 2.5], "pair": Pair(x, "y"), "wide": torch.ones(2, 1).expand(2, 999)}, path
    )
    found = archives.read(path, [Pair], mmap=mmap)
    assert torch.equal(found["x"], x.T)
    assert found["n"] == [1, None, 2.5]
    assert torch.equal(found["pair"].first, x)
    assert found["wide"].shape == (2, 999)


def test_every_flipped_bit_of_a_tensor_is_seen(path):
    torch.save({"x": torch.arange(256, dtype=torch.uint8)}, path)
    whole = path.read_bytes()
    begin = whole.index(bytes(range(256)))
    for place in range(begin, begin + 256, 17):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="data/0 does not match its checksum"):
            archives.read(path)


def test_no_class_that_is_not_named_and_no_function_is_let_in(path, tmp_path):
    trace = tmp_path / "trace"
    calls = [Call(os.system, f"touch {trace}"), Call(sources.write, trace, b"x"), Call(Path.touch, trace)]
    for content in (*calls, Pair(torch.ones(2), 1)):
        torch.save([content], path)
        with pytest.raises(ValueError, match="Weights only load failed"):
            archives.read(path)
        assert not trace.exists()


def test_a_calibration_calls_no_function_of_the_package(tmp_path):
    """Its archives hold dataclasses of the package; that must not let in anything else of it."""
    walk, trace = tmp_path / "walk", tmp_path / "trace"
    walk.mkdir()
    torch.save(
        {"format": "openwork calibration 1", "run": Call(sources.write, trace, b"x")}, walk / "block-0000.pt"
    )
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(ow.FileError, match=r"block-0000.pt: no whole checkpoint of a calibration"):
        ow.sparsify_(model, [ow.Wanda()], data=[torch.ones(3, 4)], checkpoint=walk)
    assert not trace.exists()


def test_few_bytes_that_say_they_are_many(path):
    torch.save(torch.zeros(1).expand(2**40), path)
    with pytest.raises(ValueError, match="unfold to more than 1073741824 of tensors"):
        archives.read(path)
    nested = []
    for _ in range(60):
        nested = [nested, nested]
    torch.save(nested, path)
    with pytest.raises(ValueError, match="unfold to more values than that"):
        archives.read(path)
    torch.save(torch.ones(9), path)
    rewritten(path, lambda parts: parts.update({"archive/data/0": bytes(2**22)}), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"compressed, which torch.save never does"):
        archives.read(path)


def test_parts_that_share_their_bytes_are_refused(path):
    """An archive in which one part stands under two names would be larger than its file."""
    torch.save(torch.ones(999), path)
    with zipfile.ZipFile(path, "a") as archive:
        (info,) = (i for i in archive.infolist() if i.filename.endswith("data/0"))
        archive.filelist.append(info)
        archive._didModify = True
    with pytest.raises(ValueError, match="lie on one another"):
        archives.read(path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\5\6" + bytes(18)])
def test_what_is_no_archive(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        archives.read(path)
    with pytest.raises(FileNotFoundError):
        archives.read(path.with_name("nothing"))


def test_a_checkpoint_that_a_disk_damaged_is_refused(tmp_path):
    model = torch.nn.Linear(40, 30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ow.save_checkpoint(tmp_path / "run", model=model, optimizer=optimizer)
    whole = bytearray((tmp_path / "run").read_bytes())
    whole[whole.index(model.weight.detach().numpy().tobytes()) + 1000] ^= 4
    (tmp_path / "run").write_bytes(whole)
    before = model.weight.clone()
    with pytest.raises(ow.FileError, match="does not match its checksum: it was damaged"):
        ow.load_checkpoint(tmp_path / "run", model=model, optimizer=optimizer)
    assert torch.equal(model.weight, before)


def test_older_archives_of_torch_are_refused(path):
    file = io.BytesIO()
    torch.save(torch.ones(3), file, _use_new_zipfile_serialization=False)
    path.write_bytes(file.getvalue())
    with pytest.raises(ValueError, match="not a zip file"):
        archives.read(path)
