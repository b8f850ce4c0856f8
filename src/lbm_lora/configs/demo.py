"""The options of the verb `demo`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Compress the bundled mini model, and relight an image with the LoRA. No download, no GPU."""

    output: Path = Path("demo")
    """Folder for everything that is written."""
    size: str = "2MB"
    """Largest size of the LoRA file."""
