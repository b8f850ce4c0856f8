"""The options of the verb `layers`."""

from dataclasses import dataclass

from lbm_lora.configs.marks import Checkpoint, Count, Pattern


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """List the layers that a LoRA can hold, or those that patterns select, and the size of a LoRA of them."""

    model_path: Checkpoint
    """A checkpoint, base or tuned; may be user/repo on the hub."""
    patterns: tuple[Pattern, ...] = ()
    """List only layers that match one of these: part of a name, a glob, or re:REGEX. Default: every layer."""
    rank: Count = 32
    """Rank of linear layers, for the size."""
    conv_rank: Count | None = None
    """Rank of conv layers, for the size. Default: half of the rank."""
