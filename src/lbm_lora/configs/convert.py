"""The options of the verb `convert`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lbm_lora.configs.marks import ADVANCED, Checkpoint, Count, File, Lora, Named
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.values import AlphaIs, BiasesAs, FormatName, NormsAs


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(OutputOptions):
    """Write a LoRA in the format of another program: ComfyUI, sd-scripts, diffusers, PEFT or LyCORIS. The format of
    the given file is detected."""

    lora_path: Lora
    """The LoRA, of any of these formats; an adapter of PEFT is a folder."""
    to: Annotated[FormatName, Named("FORMAT")]
    """Format to write: native, lbm-lora's own; comfyui, with the keys of ComfyUI's loader; kohya, with SDXL's
    single-file names; kohya-diffusers, with diffusers' names; or diffusers, peft or lycoris, for these
    libraries."""
    save_to: File
    """Write the LoRA here: a .safetensors file, or a folder for peft."""
    biases: BiasesAs = "keep"
    """What to do with changed biases: keep them, or fail if the format cannot hold them; store them as the bias of
    PEFT's lora_B (lora_bias); store the tuned values in place of the base's (replace); or drop them."""
    norms: NormsAs = "keep"
    """What to do with changed norms: keep them, or fail if the format cannot hold them; store the tuned values in
    place of the base's (replace); or drop them."""
    base_model_path: Checkpoint | None = None
    """Base of the LoRA. Needed for replace, and to read files with DoRA magnitudes or with values that replace the
    base's."""
    save_precision: Literal["float", "fp16", "bf16", "int8"] | None = None
    """Store the LoRA in this precision. Default: that of the file. Only the native format holds int8; the others
    store such factors as float."""
    rank: Annotated[Count | None, Named("N")] = None
    """Approximate matrices of a higher rank at this rank, and report the error. For LoHa, LoKr and dense matrices,
    which are large in their exact form. Default: exact."""
    lora_alpha_is: Annotated[AlphaIs, ADVANCED] = "auto"
    """Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for files of the
    earlier implementation, else file."""
