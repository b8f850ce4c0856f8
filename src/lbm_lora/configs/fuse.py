"""The options of the verb `fuse`."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.configs.marks import ADVANCED, Checkpoint, File, Lora, Scale
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.values import AlphaIs


@dataclass(frozen=True, kw_only=True)
class FuseConfig(OutputOptions):
    """Add LoRAs to a checkpoint's weights and write the result, tensor by tensor."""

    base_model_path: Checkpoint
    """Checkpoint that the LoRAs were made for; may be user/repo on the hub."""
    lora_path: tuple[Lora, ...]
    """LoRAs, files or user/repo on the hub. All of them are added."""
    save_to: File
    """Write the checkpoint here: .safetensors or .ckpt."""
    lora_scale: tuple[Scale, ...] = (1.0,)
    """Scale of each LoRA, or one for all: 0 is the base, 1 the LoRA as it was made; may be negative. By layer:
    0.8,down_blocks=0.5,attn1=0 is 0.8, but 0.5 where down_blocks matches a name, and 0 where attn1 does (the last match
    counts). A pattern is part of a name, a glob, or re:REGEX."""
    lora_alpha_is: Annotated[AlphaIs, ADVANCED] = "auto"
    """Meaning of alpha in a LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for files of the earlier
    implementation, else file."""
    crop: Annotated[bool, ADVANCED] = False
    """Crop the attn2 keys and values of a LoRA made for SDXL to their first columns, as the exact base does. Default:
    leave them out, because an LBM's attn2 sees the image, not text."""
    allow_other_base: Annotated[bool, ADVANCED] = False
    """Continue even if a LoRA was made from another base."""
    allow_unmatched: Annotated[bool, ADVANCED] = False
    """Continue even if keys of a LoRA match nothing in the checkpoint."""
