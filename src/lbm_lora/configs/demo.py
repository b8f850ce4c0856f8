"""The options of the verb `demo`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Make the base, extract a LoRA, validate it and relight images with it, on the bundled mini model."""

    output: Path = Path("demo")
    """Folder for everything that is written."""
    rank: int = 16
    """Rank of linear layers. The mini model's widest layers have 64 columns."""
    conv_rank: int = 16
    """Rank of conv layers."""
