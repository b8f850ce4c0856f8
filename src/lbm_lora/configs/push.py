"""The options of the verb `push`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lbm_lora.configs.marks import ADVANCED, HUB_LORA, POSITIONAL, Folder, Images, Named
from lbm_lora.configs.output_options import OutputOptions


@dataclass(frozen=True, kw_only=True)
class PushConfig(OutputOptions):
    """Publish a LoRA on the Hugging Face hub, in one commit: its file, its twin for diffusers, and a model card.
    Log in first: `hf auth login`, or HF_TOKEN."""

    lora_path: Annotated[Path, Named("LORA"), HUB_LORA, POSITIONAL]
    """The LoRA, of any format."""
    to: Annotated[str, Named("USER/REPO")]
    """Repository to publish it in, created if it does not exist. USER/REPO@BRANCH commits to another branch than
    main."""
    private: bool = False
    """Make the repository private. An existing public one is refused."""
    images: Images | None = None
    """Show these pictures on the card: images, folders or quoted globs, 12 at most. A report folder of `lbm-lora
    validate` also gives its measurements."""
    base_model: Annotated[str | None, Named("USER/REPO")] = None
    """Model on the hub that the LoRA is for. Default: SDXL, from which the exact base is made, if the LoRA has its
    widths."""
    license: Annotated[str, Named("LICENSE")] = "cc-by-nc-4.0"
    """License, by the hub's identifier, which the hub checks. LoRAs of LBM's published weights inherit the default."""
    message: Annotated[str | None, Named("TEXT"), ADVANCED] = None
    """Message of the commit. Default: Upload NAME."""
    save_to: Folder | None = None
    """Write the repository's files to this folder to look at them, and upload nothing."""
