"""WebDataset shards (layer L5a): fetching, reading and writing them, and what to say of samples that cannot be used."""
