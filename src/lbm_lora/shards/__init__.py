"""WebDataset shards (layer L5a): fetching, reading and writing them, and what to say of samples that cannot be used."""

SHARD_PACKAGES = ("webdataset", "braceexpand", "filelock")
"""What `fetch` and `tar` import beyond a plain install. Who imports those two asks for these packages first."""
