"""The options of the verb `train`. The settings are in the training file: `training/settings`."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.configs.marks import ADVANCED, HIDDEN, File
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.values import ForeignFormat


@dataclass(frozen=True, kw_only=True)
class TrainRunConfig(OutputOptions):
    """Train as a YAML file says. Every key of the file can also be given here and takes precedence: --learning_rate
    1e-4. A key that takes a mapping is set key by key: --rank_pattern.ff.net 8."""

    path_config: File
    """The training file. lora/lora_relight_config.yaml in the repository is an example."""
    also: Annotated[tuple[ForeignFormat, ...], ADVANCED] = ()
    """Also write the last and the best LoRA in these formats, next to the native files: last.comfyui.safetensors,
    and so on. What a format cannot hold is left out there, with a warning."""
    overrides: Annotated[tuple[tuple[str, str], ...], HIDDEN] = ()
    """(key, YAML text) pairs that take the place of the file's values."""
