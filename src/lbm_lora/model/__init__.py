"""LBM itself: its configuration, its networks built from a checkpoint, the bridge, and the exact base."""
