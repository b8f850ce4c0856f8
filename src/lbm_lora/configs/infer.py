"""The options of the verb `infer`."""

from dataclasses import dataclass
from pathlib import Path

from lbm_lora.configs.model_options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class InferConfig(ModelOptions):
    """Translate images with an LBM checkpoint and any number of LoRAs."""

    source_image: str
    """Image, folder of images, or quoted glob ('photos/*.jpg')."""
    output_path: str
    """File to write, or a folder; several images need a folder. The format follows the extension."""
    mask: str | None = None
    """Mask, or a folder with one of each image's name: white takes the result, black keeps the source."""
    compare: bool = False
    """Also write NAME_compare: source | base | with LoRA | tuned side by side."""
    save_input: bool = False
    """Also write NAME_input: the source as it was read, beside its result. A file there that is no such copy stays."""
    tuned_model_path: Path | None = None
    """The fully fine-tuned checkpoint, for the last column of --compare."""
    skip_existing: bool = False
    """Leave out images whose output is there already, by its name alone: with other settings, take another folder."""
    fail_fast: bool = False
    """Stop at the first image that cannot be read or translated, instead of going on and listing them at the end."""
