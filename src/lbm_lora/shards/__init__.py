"""WebDataset shards: fetching, reading and writing them, and what is said of samples that cannot be used."""
