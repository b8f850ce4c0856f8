"""Shards whose bytes depend on their members alone."""

from typing import BinaryIO

from webdataset.writer import TarWriter


def shard_writer(file: BinaryIO) -> TarWriter:
    """What writes samples of bytes into an open file, in the order they come: members have neither owner nor time."""
    return TarWriter(file, user="", group="", mode=0o644, mtime=0, compress=False, encoder=False, format="PAX_FORMAT")
