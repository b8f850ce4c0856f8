"""The options of the verb `layers`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """List the layers that a LoRA can hold; with patterns, what they select, and what a LoRA of it takes."""

    model_path: Path
    """A checkpoint, base or tuned."""
    patterns: tuple[str, ...] = ()
    """Part of a name, a glob, or re:REGEX. None: every layer."""
    rank: int = 32
    """Rank of linear layers, for the size."""
    conv_rank: int = 16
    """Rank of conv layers, for the size."""
