"""WebDataset shards: fetch, read and write them, and report samples that cannot be used."""

SHARD_PACKAGES = ("webdataset", "braceexpand", "filelock")
"""Packages that `fetch` and `tar` import beyond a plain install. Check for them before importing these two modules."""
