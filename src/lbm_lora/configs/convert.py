"""The options of the verb `convert`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lbm_lora.configs.marks import ADVANCED, Checkpoint, Count, File, Lora, Named
from lbm_lora.configs.values import AlphaIs, BiasesAs, FormatName, NormsAs


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Write a LoRA in the format of another program: ComfyUI, sd-scripts, diffusers, PEFT or LyCORIS. The format of
    the given file is detected."""

    lora_path: Lora
    """The LoRA, of any of these formats; an adapter of PEFT is a folder."""
    to: Annotated[FormatName, Named("FORMAT")]
    """Write this format: native is that of lbm-lora; comfyui has the keys of ComfyUI's loader; kohya has the names of
    SDXL's single file, and kohya-diffusers those of diffusers; diffusers, peft and lycoris are for these libraries."""
    save_to: File
    """Write the LoRA here: a .safetensors file; for peft a folder."""
    biases: BiasesAs = "keep"
    """What becomes of changed biases: keep them or fail, lora_bias (the bias of PEFT's lora_B), replace those of the
    base, or drop them."""
    norms: NormsAs = "keep"
    """What becomes of changed norms: keep them or fail, replace those of the base, or drop them."""
    base_model_path: Checkpoint | None = None
    """The base, for replace, and for files that hold replaced values or magnitudes of DoRA."""
    save_precision: Literal["float", "fp16", "bf16", "int8"] | None = None
    """Store the LoRA in this precision. Default: as it is. Factors in int8, which only the native format
    has, become float in others."""
    rank: Annotated[Count | None, Named("N")] = None
    """Approximate matrices of a higher rank at this one, and report the error: for LoHa, LoKr and dense matrices, whose
    exact form is large. Default: exact."""
    lora_alpha_is: Annotated[AlphaIs, ADVANCED] = "auto"
    """Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for files of the
    earlier implementation, else file."""
