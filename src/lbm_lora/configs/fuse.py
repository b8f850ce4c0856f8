"""The options of the verb `fuse`."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.configs.marks import ADVANCED, Checkpoint, File, Named
from lbm_lora.configs.values import AlphaIs


@dataclass(frozen=True, kw_only=True)
class FuseConfig:
    """Add LoRAs to a checkpoint's weights and write the result, tensor by tensor."""

    base_model_path: Checkpoint
    """Checkpoint that the LoRAs were made for."""
    lora_path: tuple[File, ...]
    """LoRA files. All of them are added."""
    save_to: File
    """Write the checkpoint here: .safetensors or .ckpt."""
    lora_scale: Annotated[tuple[float, ...], Named("SCALE")] = (1.0,)
    """Scale of each LoRA, or one for all: 0 is the base, 1 the LoRA as it was made; may be negative."""
    lora_alpha_is: Annotated[AlphaIs, ADVANCED] = "auto"
    """Meaning of alpha in a LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for files of the earlier
    implementation, else file."""
    allow_other_base: Annotated[bool, ADVANCED] = False
    """Continue even if a LoRA was made from another base."""
    allow_unmatched: Annotated[bool, ADVANCED] = False
    """Continue even if keys of a LoRA match nothing in the checkpoint."""
