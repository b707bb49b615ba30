"""Official files: found, proven, downloaded only when asked, written whole."""

import gzip
import hashlib

import pytest

from openwork.tasks import sources
from openwork.tasks.sources import MissingData, Source, WrongData, folders, read

CONTENT = b"some digits"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENWORK_DATA", raising=False)
    return tmp_path / "cache" / "openwork"


@pytest.fixture
def served(tmp_path):
    """A source whose official place is a file: no network is used."""
    place = tmp_path / "served" / "a.gz"
    place.parent.mkdir()
    place.write_bytes(gzip.compress(CONTENT))
    return Source("letters/a.gz", place.as_uri(), SHA256)


def put(folder, content, name="letters/a.gz"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def test_a_chosen_folder_comes_before_the_cache(cache, served, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENWORK_DATA", str(tmp_path / "mine"))
    assert folders() == [tmp_path / "mine", cache]
    put(cache, b"not even gzip")
    put(tmp_path / "mine", gzip.compress(CONTENT))
    assert read(served) == CONTENT


@pytest.mark.parametrize("level", [1, 9])
def test_the_packing_of_a_file_does_not_matter(cache, served, level):
    put(cache, gzip.compress(CONTENT, level))
    assert read(served) == CONTENT


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b"other"), gzip.compress(CONTENT)[:-9], b"", b"plain"],
    ids=["other", "cut short", "empty", "plain"],
)
def test_another_content_is_refused_by_name(cache, served, content):
    put(cache, content)
    with pytest.raises(WrongData, match=r"letters/a\.gz is not the official file"):
        read(served)


def test_a_packed_file_unfolds_to_no_more_than_any_official_one(cache, served, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST", 10_000)
    put(cache, gzip.compress(bytes(10**6)))
    with pytest.raises(
        WrongData, match=r"letters/a\.gz is not the official file: it unfolds to more than 10000 bytes"
    ):
        read(served)


def test_a_missing_file_says_where_it_belongs_and_how_to_allow_the_download(cache, served):
    with pytest.raises(MissingData, match="letters") as caught:
        read(served)
    hints = " ".join(caught.value.__notes__)
    assert str(cache / served.path) in hints
    assert served.url in hints
    assert "download=True" in hints
    assert not cache.exists()


def test_a_download_is_kept_and_not_repeated(cache, served, tmp_path):
    assert read(served, download=True) == CONTENT
    (tmp_path / "served" / "a.gz").unlink()
    assert read(served, download=True) == CONTENT
    assert [path.name for path in (cache / "letters").iterdir()] == ["a.gz"]


def test_a_wrong_download_is_not_kept(cache, served, tmp_path):
    (tmp_path / "served" / "a.gz").write_bytes(gzip.compress(b"an error page"))
    with pytest.raises(WrongData):
        read(served, download=True)
    assert not (cache / served.path).exists()


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(sources.Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        sources.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
