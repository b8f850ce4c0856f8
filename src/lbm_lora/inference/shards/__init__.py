"""Images of WebDataset shards, translated into shards of the same names by one or several processes."""
