"""The options of the verb `infer`."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.configs.marks import Checkpoint, Images, Named
from lbm_lora.configs.model_options import ModelOptions
from lbm_lora.configs.output_options import OutputOptions


@dataclass(frozen=True, kw_only=True)
class InferConfig(ModelOptions, OutputOptions):
    """Translate images with an LBM checkpoint and any number of LoRAs. For WebDataset shards see
    `lbm-lora infer --source_shards --help`."""

    source_image: Images
    """Image, folder of images, or quoted glob ('photos/*.jpg')."""
    output_path: Annotated[str, Named("PATH")]
    """Write to this file, or to this folder; several images need a folder. The extension chooses the format."""
    mask: Annotated[str | None, Named("MASK")] = None
    """Mask, or a folder with a mask of the same name for each image: white takes the result, black keeps the source."""
    compare: bool = False
    """Also write NAME_compare: source, base, with LoRA and tuned side by side."""
    save_input: bool = False
    """Also write NAME_input: the source as it was read, next to its result. Other files of that name are kept."""
    tuned_model_path: Checkpoint | None = None
    """Add a column of this fine-tuned checkpoint to --compare."""
    skip_existing: bool = False
    """Skip images whose output already exists, even from other settings. With new settings, use another folder."""
    fail_fast: bool = False
    """Stop at the first image that fails. Default: continue, and list the failed images at the end."""
