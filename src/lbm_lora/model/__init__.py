"""LBM itself (layer L4b): configuration, networks built from a checkpoint, the bridge, and the exact base."""
