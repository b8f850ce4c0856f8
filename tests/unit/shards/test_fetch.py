"""Local copies of shards: what is copied, what is refused, and that a copy is whole or not there."""

import bz2
import gzip
import io
import lzma
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from webdataset.gopen import Pipe, gopen_schemes

from lbm_lora.errors import ConfigError, DataError, OutputError
from lbm_lora.shards import fetch
from lbm_lora.shards.fetch import local_shards


@pytest.fixture
def shard(write_shard: Callable[..., Path]) -> Path:
    return write_shard("data/t-0.tar", {"000": {"source.jpg": bytes(5000)}})


def local(*shards: str, cache_dir: Path | None = None, allow_pipe: bool = False) -> list[Path]:
    return local_shards(shards, cache_dir=cache_dir, allow_pipe=allow_pipe)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("scheme", ["PIPE", "Pipe", "pIPE"])
def test_a_pipe_needs_permission_however_it_is_spelt(scheme: str, shard: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(ConfigError, match=r"runs a shell command\. Allow it with allow_pipe"):
        local(f"{scheme}:touch {made}", cache_dir=tmp_path / "cache")
    assert not made.exists()
    (copy,) = local(f"{scheme}:cat {shard}", cache_dir=tmp_path / "cache", allow_pipe=True)
    assert copy.read_bytes() == shard.read_bytes()


@pytest.mark.parametrize("url", ["scp://host/a.tar", "htgs://host/a.tar", "s9://b/t.tar"])
def test_a_scheme_that_nobody_allowed_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has a URL of the scheme \w+\. Use a path, or one of http, https, "):
        local(url, cache_dir=tmp_path / "cache", allow_pipe=True)


def test_what_a_pipe_gives_is_kept(shard: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    url = f"pipe:echo x >> {log}; cat {shard}"
    cache = tmp_path / "cache"
    (copy,) = local(url, cache_dir=cache, allow_pipe=True)
    assert copy.is_relative_to(cache)
    assert copy.read_bytes() == shard.read_bytes()
    assert local(url, cache_dir=cache, allow_pipe=True) == [copy]
    assert log.read_text() == "x\n"


def test_a_failed_command_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["sh", "-c", "exit 22", "Authorization:Bearer secret"]
    monkeypatch.setitem(gopen_schemes, "hf", lambda *_: Pipe(command, mode="rb", bufsize=8192))
    with pytest.raises(DataError) as raised:
        local("hf://datasets/a/b/t.tar", cache_dir=tmp_path)
    assert str(raised.value) == (
        "the shard hf://datasets/a/b/t.tar cannot be fetched: its command (curl, gsutil, or a pipe) ended "
        "with exit code 22."
    )


def test_urls_are_copied_once_under_their_name(shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(url: str, mode: str, bufsize: int) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(url.encode())

    monkeypatch.setitem(gopen_schemes, "https", fetch)
    urls = [f"https://host{number}/path/t.tar?key=1" for number in range(3)]
    copies = local(*urls, cache_dir=tmp_path)
    assert [copy.read_text() for copy in copies] == urls
    assert all(copy.name.endswith("-t.tar") for copy in copies)
    local(*urls, cache_dir=tmp_path)
    assert asked == urls


def test_processes_that_want_the_same_shard_wait_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            asked.append("read")
            return super().read(size)

    monkeypatch.setitem(gopen_schemes, "http", lambda *_: Slow(b"data"))
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(lambda _: local("http://host/t.tar", cache_dir=tmp_path)[0], range(4)))
    assert len(set(copies)) == 1
    assert copies[0].read_bytes() == b"data"
    assert len(asked) == 2  # the data, and their end


class ConnectError(Exception):
    """Like that of httpx, which is neither an OSError nor a ValueError."""


@pytest.mark.parametrize(
    "error", [OSError("no route"), ValueError("no handler"), FileNotFoundError("curl"), ConnectError("[Errno -2] Name")]
)
def test_a_failed_download_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> io.BytesIO:
        raise error

    monkeypatch.setitem(gopen_schemes, "http", fail)
    with pytest.raises(DataError, match=rf"the shard http://host/t\.tar cannot be fetched: {re.escape(str(error))}\."):
        local("http://host/t.tar", cache_dir=tmp_path / "cache")
    assert leftovers(tmp_path) == []


def packed_beside(shard: Path) -> Path:
    path = shard.with_name("t.tgz")
    path.write_bytes(gzip.compress(shard.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("cache", "reason"),
    [("file", "Not a directory"), ("x" * 300, "File name too long"), ("a\0b", "embedded null byte")],
)
def test_a_cache_that_cannot_be_made_is_said(shard: Path, tmp_path: Path, cache: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=f"cannot be used for copies of shards: {reason}\\. Choose another cache_dir"):
        local(str(packed_beside(shard)), cache_dir=tmp_path / cache)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_shards_are_unpacked_once(
    shard: Path, tmp_path: Path, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = shard.with_name("t.tar.x")
    packed.write_bytes(compress(shard.read_bytes()))
    (copy,) = local(str(packed), cache_dir=tmp_path / "cache")
    assert copy.read_bytes() == shard.read_bytes()
    first = copy.stat().st_mtime_ns
    assert local(str(packed), cache_dir=tmp_path / "cache")[0].stat().st_mtime_ns == first
    packed.write_bytes(compress(shard.read_bytes() * 2))
    (other,) = local(str(packed), cache_dir=tmp_path / "cache")
    assert other.read_bytes() == shard.read_bytes() * 2


def test_a_damaged_compressed_shard_is_said(shard: Path, tmp_path: Path) -> None:
    packed = shard.with_name("t.tgz")
    packed.write_bytes(gzip.compress(shard.read_bytes())[:-20])
    with pytest.raises(DataError, match=r"the shard .*t\.tgz cannot be unpacked: "):
        local(str(packed), cache_dir=tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_a_compressed_shard_does_not_fill_the_disk(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.tar.gz"
    bomb.write_bytes(gzip.compress(bytes(20_000_000)))
    with pytest.raises(DataError, match="cannot be unpacked: its contents have more than 100 times its bytes"):
        local_shards([str(bomb)], cache_dir=tmp_path / "cache", allow_pipe=False)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size] == []


def test_a_url_that_sends_nothing_more_is_given_up(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = {"http://host/a.tar": ["cat", str(shard)], "http://host/b.tar": ["tail", "-f", str(shard)]}
    monkeypatch.setattr(fetch, "PATIENCE", 0.5)
    monkeypatch.setitem(gopen_schemes, "http", lambda url, *_: Pipe(commands[url], mode="rb", bufsize=8192))
    assert local("http://host/a.tar", cache_dir=tmp_path / "cache")[0].read_bytes() == shard.read_bytes()
    with pytest.raises(DataError, match=r"the shard http://host/b\.tar cannot be fetched: nothing came for 0\.5 s\."):
        local("http://host/b.tar", cache_dir=tmp_path / "cache")
