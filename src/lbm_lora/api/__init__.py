"""Every verb as a function of Python values: `lbm_lora.extract(base, tuned, rank=32)` (layer L7).

A checkpoint is a path, an open `Checkpoint` or a state dict, a LoRA is a path or an `Adapter`, images are paths, PIL
images or lists of them. Options are the fields of the verb's config (`options`), so each default is defined once. The
functions and the command line share the workflows' one path: a workflow opens files and writes files, a function hands
over values and gets values back.

The `.pyi` files beside the modules are made by `tools/write_api_stubs.py`: the same functions with their options
spelled out, for editors and type checkers.
"""
