"""The options of the verb `inspect`."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.configs.marks import ADVANCED, HUB_LORA, POSITIONAL, Checkpoint, File, Folder
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.values import AlphaIs


@dataclass(frozen=True, kw_only=True)
class InspectConfig(OutputOptions):
    """Show on one screen what a file is, LoRA or checkpoint, or how two files differ."""

    files: Annotated[tuple[Annotated[File, HUB_LORA], ...], POSITIONAL]
    """One file to inspect, or two to compare: LoRAs, checkpoints, or a LoRA and a checkpoint that it may fit."""
    base_model_path: Checkpoint | None = None
    """Also check whether the LoRA was made from this checkpoint, and fits it. Needed to read a LoRA with values
    that replace the base's."""
    report: Folder | None = None
    """Write inspect.html to this folder: the same facts, and the blocks as heat maps."""
    lora_alpha_is: Annotated[AlphaIs, ADVANCED] = "auto"
    """Meaning of alpha in a LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for files of the earlier
    implementation, else file."""
