"""The options of the verb `fuse`."""

from dataclasses import dataclass
from pathlib import Path

from lbm_lora.configs.values import AlphaIs


@dataclass(frozen=True, kw_only=True)
class FuseConfig:
    """Add LoRAs to a checkpoint's weights and write the result, tensor by tensor."""

    base_model_path: Path
    """Checkpoint that the LoRAs were made for."""
    lora_path: tuple[Path, ...]
    """LoRA files, all added."""
    save_to: Path
    """Where to write: .safetensors or .ckpt."""
    lora_scale: tuple[float, ...] = (1.0,)
    """lora_scale of each LoRA, or one for all."""
    lora_alpha_is: AlphaIs = "auto"
    """What alpha in a LoRA file means: the rank (scaling 1), or what it says (file). auto: the rank in files of the
    earlier implementation, else what it says."""
    allow_other_base: bool = False
    """Go on where a LoRA was made from another base."""
    allow_unmatched: bool = False
    """Go on where keys of a LoRA match nothing in the checkpoint."""
