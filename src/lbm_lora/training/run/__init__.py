"""A training run: what is made ready for it, its loop, and what it leaves in its folder."""
