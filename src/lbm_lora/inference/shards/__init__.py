"""Translate images of WebDataset shards into shards of the same names, by one or several processes."""
