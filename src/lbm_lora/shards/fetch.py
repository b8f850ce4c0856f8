"""Provide shards as local, uncompressed files, since indexed reading needs to seek.

Shards that are remote or compressed are copied into the cache folder once, where later runs find them.
"""

import bz2
import gzip
import lzma
import os
import re
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from signal import SIGKILL
from threading import Timer
from typing import BinaryIO, cast
from urllib.parse import urlparse
from urllib.request import url2pathname

import xxhash
from filelock import FileLock
from webdataset.gopen import Pipe, gopen

from lbm_lora.errors import ConfigError, DataError, Option, OutputError, home_path, listing, not_there, plural
from lbm_lora.files import atomic_path
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards.samples import ends_digest

_COMPRESSED = {b"\x1f\x8b": gzip.GzipFile, b"BZh": bz2.BZ2File, b"\xfd7zXZ": lzma.LZMAFile}
"""Map from the first bytes of a file to its decompressor."""
PATIENCE = 60.0
"""Seconds without a byte after which a URL counts as dead. The commands of `pipe:` may take longer."""
MOST_UNPACKED = 100  # largest ratio of unpacked to compressed bytes: images hardly compress
_LONG = 200  # bytes: what is added must fit in too
_SCHEMES = ("http", "https", "ftps", "sftp", "hf", "gs", "ais")
"""What WebDataset fetches without being told a command. `pipe` is one, and needs permission."""


def local_shards(
    shards: Sequence[str], *, cache_dir: Path | None, allow_pipe: bool, progress: Progress = SILENT
) -> list[Path]:
    """Return a local, uncompressed file for each shard, a path or a URL without patterns, in order.

    Copies are made in `cache_dir`. `allow_pipe` runs the shell commands of `pipe:` shards.
    """
    paths = list(map(path_of, shards))
    for shard, path in zip(shards, paths, strict=True):
        if path is None:
            _check_url(shard, cache_dir, allow_pipe)
    there = [path for path in paths if path is not None]
    missing = [path for path in there if not path.is_file()]
    if missing and missing[0].exists():
        raise DataError(f"{missing[0]} is not a regular file. A shard is a .tar file.")
    if missing:
        first = not_there(missing[0], (missing[0].suffix,))
        more = f" Nor do {listing(map(str, missing[1:]))}." if len(missing) > 1 else ""
        raise DataError(f"{len(missing):,} of {plural(len(shards), 'shard')} not found: {first}{more}")
    if None in paths:
        progress.start(len(shards), "fetching shards")
    local: list[Path] = []
    for shard, path in zip(shards, paths, strict=True):
        local.append(_unpacked(path or _fetched(shard, cache_dir or Path()), cache_dir))
        progress.advance()
    return local


def path_of(shard: str) -> Path | None:
    """Return the path of a local shard; None for any other URL."""
    parsed = urlparse(shard)
    if parsed.scheme == "file":
        return Path(url2pathname(parsed.path))
    # a single letter is a drive
    return home_path(shard) if len(parsed.scheme) <= 1 else None


def _check_url(shard: str, cache_dir: Path | None, allow_pipe: bool) -> None:
    scheme = urlparse(shard).scheme  # in lower case: PIPE: is pipe: too
    if scheme == "pipe" and not allow_pipe:
        raise ConfigError(f"the shard '{shard}' runs a shell command. Allow it with allow_pipe: true.")
    if scheme not in (*_SCHEMES, "pipe"):
        raise ConfigError(
            f"the shard '{shard}' has a URL of the scheme {scheme}. Use a path, or one of {', '.join(_SCHEMES)}."
        )
    if cache_dir is None:
        raise ConfigError(f"the shard {shard} is not a local file. Set cache_dir, the folder to copy it into.")


def _fetched(url: str, cache_dir: Path) -> Path:
    scheme = urlparse(url).scheme
    copy = _place(cache_dir, url, "pipe.tar" if scheme == "pipe" else Path(urlparse(url).path).name)
    url = f"{scheme}{url[len(scheme) :]}"  # WebDataset knows schemes in lower case alone
    with _missing(copy) as temporary:
        if temporary is not None:
            try:
                with gopen(url, "rb") as stream, temporary.open("wb") as file:
                    if isinstance(stream, Pipe) and scheme != "pipe":
                        _copy(stream, file)
                    else:
                        shutil.copyfileobj(stream, file, 1 << 20)  # pyright: ignore[reportArgumentType]
                    if not file.tell():  # as when the first command of a pipe fails
                        raise EOFError("nothing came")
            except Exception as error:  # the errors of several HTTP libraries, and plain ones
                raise DataError(f"the shard {url} cannot be fetched: {_reason(error)}.") from None
    return copy


def _copy(stream: Pipe, file: BinaryIO) -> None:
    """Copy what a command fetches. One that sends nothing for `PATIENCE` seconds is ended."""
    chunk = b"..."
    while chunk:
        timer = Timer(PATIENCE, stream.proc.kill)
        timer.start()
        chunk = cast(BufferedReader, stream.stream).read1(1 << 20)
        timer.cancel()
        file.write(chunk)


def _reason(error: Exception) -> str:
    """Return the cause without the command line that WebDataset shows, which may contain an access token."""
    ended = re.search(r": exit (-?\d+) \(read\)", str(error))
    if ended and int(ended[1]) == -SIGKILL:
        return f"nothing came for {PATIENCE:g} s"
    if ended:
        return f"its command (curl, gsutil, or a pipe) ended with exit code {ended[1]}"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _unpacked(path: Path, cache_dir: Path | None) -> Path:
    with path.open("rb") as file:
        head = file.read(6)
    opener = next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)
    if opener is None:
        return path
    if cache_dir is None:
        raise ConfigError(f"the shard {path} is compressed. Set cache_dir, the folder to unpack it into.")
    stat = path.stat()
    origin = " ".join(map(str, (path.resolve(), stat.st_size, stat.st_mtime_ns, ends_digest(path))))
    copy = _place(cache_dir, origin, f"{path.stem}.unpacked.tar")
    with _missing(copy) as temporary:
        if temporary is not None:
            try:
                with opener(path) as stream, temporary.open("wb") as file:
                    while block := stream.read(1 << 20):
                        file.write(block)
                        if file.tell() > MOST_UNPACKED * stat.st_size + (1 << 20):
                            raise OSError(f"its contents have more than {MOST_UNPACKED} times its bytes")
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise DataError(f"the shard {path} cannot be unpacked: {error}.") from None
    return copy


def _place(cache_dir: Path, origin: str, name: str) -> Path:
    """Return the cache file for an origin; of a long name, its end."""
    name = name if len(os.fsencode(name)) <= _LONG else name[-_LONG // 4 :]
    return cache_dir / "shards" / f"{xxhash.xxh3_64_hexdigest(origin.encode())}-{name or 'shard.tar'}"


@contextmanager
def _missing(copy: Path) -> Generator[Path | None]:
    """Yield the temporary path of a copy to make; None if it exists, or another process has just made it."""
    lock = FileLock(f"{copy}.lock")
    try:
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise OutputError(
            f"{copy.parent} cannot be used for copies of shards: {reason}. Choose another ", Option("cache_dir"), "."
        ) from None
    try:
        if copy.exists():
            yield None
        else:
            with atomic_path(copy) as temporary:
                yield temporary
    finally:
        lock.release()
