"""The verbs: one file each. Their modules load no torch; their bodies do."""

from importlib import import_module

from lbm_lora.verbs.verb import Verb

VERBS = {
    "train": "train:train",
    "infer": "infer:infer",
    "infer --source_shards": "infer_shards:infer_shards",
    "push": "push:push",
    "inspect": "inspect:inspect",
    "resize": "resize:resize_several",
    "merge": "merge:merge",
    "calibrate": "calibrate:calibrate",
    "extract": "extract:extract_several",
    "base": "base:make_base",
    "doctor": "doctor:doctor",
    "data pack": "data_pack:pack_data",
    "data check": "data_check:check_data",
    "convert": "convert:convert",
    "refine": "refine:refine",
    "fuse": "fuse:fuse",
    "layers": "layers:layers",
}
"""What a user types -> module and function."""


def verb_named(name: str) -> Verb:
    """Return a verb of the command line."""
    module, _, function = VERBS[name].partition(":")
    return getattr(import_module(f"lbm_lora.verbs.{module}"), function).verb
