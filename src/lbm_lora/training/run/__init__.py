"""A training run: preparation, loop, and output folder."""
