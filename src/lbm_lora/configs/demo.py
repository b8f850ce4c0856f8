"""The options of the verb `demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lbm_lora.configs.marks import Folder, Named
from lbm_lora.configs.output_options import OutputOptions


@dataclass(frozen=True, kw_only=True)
class DemoConfig(OutputOptions):
    """Compress the bundled mini model, and relight an image with the LoRA. No download, no GPU."""

    output: Folder = Path("demo")
    """Write everything to this folder."""
    size: Annotated[str, Named("SIZE")] = "2MB"
    """Largest size of the LoRA file."""
