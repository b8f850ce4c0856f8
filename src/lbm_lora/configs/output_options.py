"""The option of every verb that writes files."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.configs.marks import ADVANCED


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options for existing files. See `file_plan`."""

    overwrite: Annotated[bool, ADVANCED] = False
    """Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never replaced."""
