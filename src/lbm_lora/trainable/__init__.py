"""A LoRA that learns in a live network (layer L5a): what learns, PEFT's layers, the way back to a file, a run's state.

It knows nothing of losses, data or training files; `train` and `refine` stand on it.
"""
