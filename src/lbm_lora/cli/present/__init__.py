"""The text of each workflow's result on stdout: presenters return it, and print nothing.

A result says what it is by its workflow, so that no other workflow's libraries are imported to present it.
"""

from collections.abc import Callable
from typing import Any

from lbm_lora.cli.present import (
    compress,
    inference,
    loras,
)

PRESENTERS: dict[str, Callable[[Any, bool], str]] = {
    "compress": compress.compress,
    "validate": loras.validate,
    "demo": inference.demo,
}
"""Module of a workflow -> the function of its result, and of whether every layer is wanted, that gives the text."""


def present(workflow: str, result: Any, *, verbose: bool = False) -> str:
    """Return the text of a workflow's result; with `verbose`, every layer too."""
    return PRESENTERS[workflow](result, verbose)
