"""LBM itself (layer L4): configuration, networks built from a checkpoint, the bridge, and the exact base."""
