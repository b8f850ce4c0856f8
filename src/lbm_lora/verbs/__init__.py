"""The verbs: one file each. Their modules load no torch; their bodies do."""

from importlib import import_module

from lbm_lora.verbs.verb import Verb

SHARDS = "infer --source_shards"
"""A verb of its own: images and shards have different flags."""

VERBS = {
    "demo": "demo:demo",
    "compress": "compress:compress",
    "extract": "extract:extract_several",
    "validate": "validate:validate",
    "infer": "infer:infer",
    "fuse": "fuse:fuse",
    "resize": "resize:resize_several",
    "convert": "convert:convert",
    "train": "train:train",
    "base": "base:make_base",
    "calibrate": "calibrate:calibrate",
    "refine": "refine:refine",
    "merge": "merge:merge",
    "layers": "layers:layers",
    "inspect": "inspect:inspect",
    "doctor": "doctor:doctor",
    "push": "push:push",
    "data pack": "data_pack:pack_data",
    "data check": "data_check:check_data",
    SHARDS: "infer_shards:infer_shards",
}
"""What a user types -> module and function."""


def verb_named(name: str) -> Verb:
    """Return a verb of the command line."""
    module, _, function = VERBS[name].partition(":")
    return getattr(import_module(f"lbm_lora.verbs.{module}"), function).verb
