"""The options of the verb `resize`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lbm_lora.configs.marks import ADVANCED, Checkpoint, File, Images, Lora, Named, Pattern
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.rank_options import RankOptions
from lbm_lora.configs.values import AlphaIs


@dataclass(frozen=True, kw_only=True)
class ResizeConfig(RankOptions, OutputOptions):
    """Give a LoRA other ranks, from its factors alone: the best approximation of what it was. Choose the ranks with at
    most one of --ranks, --max_size, --max_error, --max_output_error, --min_psnr, --keep_energy and --max_module_error,
    else with --rank and --conv_rank. Layers that have no more ranks are kept as they are."""

    max_error: Annotated[float | None, Named("SHARE")] = None
    """Write the smallest file whose total relative error of the weights, against the LoRA as it was, is at most
    this: above 0, up to 1 (0.05: 5 %). Not with --calibration."""
    max_output_error: Annotated[float | None, Named("SHARE")] = None
    """Write the smallest file whose relative error of the denoiser's output, against the LoRA as it was, is at most
    this: above 0, up to 10 (0.05: 5 %). Needs --calibration."""
    min_psnr: Annotated[float | None, Named("DB")] = None
    """Write the smallest file with which each of --images reaches this PSNR (dB) to the one-step image of the LoRA as
    it was. Needs --images and --base_model_path."""
    lora_path: Lora
    """LoRA to resize."""
    save_to: File
    """Write the LoRA here: a .safetensors file."""
    calibration: File | None = None
    """Minimise the error of the output instead of the weights, with these statistics from `lbm-lora calibrate`.
    Measure the tuned model that the LoRA was extracted from; for a trained LoRA, its base with the LoRA fused."""
    base_model_path: Checkpoint | None = None
    """Base of the LoRA, to run resized LoRAs on: on --images, and with --calibration at its check points, which
    corrects the predicted error."""
    images: Images | None = None
    """Run resized LoRAs on these images and report their PSNR to the one-step images of the LoRA as it was."""
    include: Annotated[tuple[Pattern, ...], ADVANCED] = ()
    """Keep only tensors that match one of these patterns: part of a name, a glob, or re:REGEX. Default: all."""
    exclude: Annotated[tuple[Pattern, ...], ADVANCED] = ()
    """Leave out tensors that match one of these patterns. Takes precedence over --include."""
    dense: Annotated[bool, ADVANCED] = True
    """Keep the dense deltas of biases and norms."""
    save_precision: Annotated[Literal["float", "fp16", "bf16", "int8"] | None, ADVANCED] = None
    """Store the LoRA in this precision. Default: that of the file. int8 fits twice the ranks into a file, which only
    lbm-lora can read."""
    lora_alpha_is: Annotated[AlphaIs, ADVANCED] = "auto"
    """Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for files of the earlier
    implementation, else file."""
    allow_other_base: Annotated[bool, ADVANCED] = False
    """Continue even if the LoRA was made from another base than --base_model_path."""
    device: Annotated[str, Named("DEVICE")] = "auto"
    """Run resized LoRAs on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N."""
    config_path: Annotated[File | None, ADVANCED] = None
    """Read LBM's config.yaml from here, for a base that has none in it or next to it."""
