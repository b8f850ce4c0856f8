"""LBM itself: configuration, networks built from a checkpoint, the bridge, and the exact base."""
