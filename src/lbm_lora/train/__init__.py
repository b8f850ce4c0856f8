"""Training (layer L5): imports L0 to L4, and neither `infer` nor `calibrate`, which are its siblings."""
