"""A trainable LoRA in a live network (layer L5a): selection, PEFT's layers, export to a file, state of a run.

It knows nothing of losses, data or training files; `train` and `refine` build on it.
"""
