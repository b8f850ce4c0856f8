"""The text of each workflow's result on stdout: presenters return it, and print nothing.

A result says what it is by its workflow, so that no other workflow's libraries are imported to present it.
"""

from collections.abc import Callable
from typing import Any

from lbm_lora.cli.present import (
    checkpoints,
    compress,
    doctor,
    formats,
    hub,
    inference,
    inspection,
    loras,
    merge,
    training,
)

PRESENTERS: dict[str, Callable[[Any, bool], str]] = {
    "base": checkpoints.base,
    "compress": compress.compress,
    "validate": loras.validate,
    "infer": inference.infer,
    "infer_shards": inference.infer_shards,
    "convert": formats.convert,
    "train": training.train,
    "data_pack": training.data_pack,
    "data_check": training.data_check,
    "refine": loras.refine,
    "merge": merge.merge,
    "resize": loras.resize,
    "inspect": inspection.inspect,
    "doctor": doctor.doctor,
    "push": hub.push,
    "demo": inference.demo,
}
"""Module of a workflow -> the function of its result, and of whether every layer is wanted, that gives the text."""


def present(workflow: str, result: Any, *, verbose: bool = False) -> str:
    """Return the text of a workflow's result; with `verbose`, every layer too."""
    return PRESENTERS[workflow](result, verbose)
