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
    """What alpha in a LoRA file means: the rank, a scaling of 1 (rank), or what it says (file). auto: the rank in files
    of the earlier implementation, else what it says."""
    allow_other_base: Annotated[bool, ADVANCED] = False
    """Go on if a LoRA was made from another base."""
    allow_unmatched: Annotated[bool, ADVANCED] = False
    """Go on if keys of a LoRA match nothing in the checkpoint."""
