"""Training data: pairs of images from folders or WebDataset shards, in batches of one size."""
