"""The options of the verb `extract`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lbm_lora.configs.marks import ADVANCED, Bounds, Checkpoint, File, Images, Named, Pattern
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.rank_options import RankOptions
from lbm_lora.configs.values import ForeignFormat


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(RankOptions, OutputOptions):
    """Extract a LoRA: the change of a fine-tune, matrices as low-rank factors, biases and norms dense. Choose the
    ranks with at most one of --ranks, --max_size, --max_error, --max_output_error, --min_psnr, --keep_energy and
    --max_module_error, else with --rank and --conv_rank."""

    base_model_path: Checkpoint
    """Checkpoint that the tuned one started from: .safetensors, shards with an index, .ckpt, a folder, or user/repo on
    the hub."""
    tuned_model_path: Checkpoint
    """The fine-tuned checkpoint."""
    save_to: File
    """Write the LoRA here: a .safetensors file."""
    calibration: File | None = None
    """Minimise the error of the output instead of the weights, with these statistics from `lbm-lora calibrate`."""
    calibration_images: Images | None = None
    """Calibrate first on these source images, and keep the statistics next to the LoRA: an image, a folder or a
    quoted glob."""
    images: Images | None = None
    """Run a calibrated LoRA on these images and report their PSNR to the tuned model's one-step images."""
    refit: bool = True
    """With --calibration_images: then fit biases, norms and one factor per rank together to the tuned model's outputs
    on these images, and keep the result if it is better on images that were held out. About a minute for a small
    network; on a CPU not done for the full-size model."""
    check: Annotated[bool, ADVANCED] = True
    """Run a calibrated LoRA at the check points in the statistics, in fp32, and correct the predicted error with the
    result."""
    include: Annotated[tuple[Pattern, ...], ADVANCED] = ()
    """Extract only tensors that match one of these patterns: part of a name, a glob, or re:REGEX. Default: all."""
    exclude: Annotated[tuple[Pattern, ...], ADVANCED] = ()
    """Leave out tensors that match one of these patterns. Takes precedence over --include."""
    target_coverage: Annotated[Literal["full", "attention", "extended"], ADVANCED] = "full"
    """Extract these layers: all of them (full), only attn1 and attn2 (attention), or also feed-forward and projections
    (extended)."""
    dense: Annotated[bool, ADVANCED] = True
    """Keep the changes of biases and norms as dense deltas."""
    save_precision: Annotated[Literal["auto", "float", "fp16", "bf16", "int8"] | None, ADVANCED] = None
    """Store the LoRA in this precision. auto gives each rank, bias and norm the bits that it is worth, for a size or an
    error. Default: bf16; with calibration auto, or fp16 if ranks are given. Only lbm-lora reads auto and int8:
    `lbm-lora convert` makes files for other programs."""
    also: Annotated[tuple[ForeignFormat, ...], ADVANCED] = ()
    """Also write the LoRA in these formats, next to the native file: NAME.comfyui.safetensors, and so on. What a format
    cannot hold is left out there, with a warning."""
    min_diff: Annotated[float, Bounds(0), ADVANCED] = 0.0
    """Leave out tensors whose largest change is below this. The ledger lists them."""
    device: Annotated[str, Named("DEVICE")] = "auto"
    """Decompose matrices on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N."""
    create_base_model: Annotated[bool, ADVANCED] = False
    """If --base_model_path does not exist, make the base there first, from --backbone_signature."""
    backbone_signature: Annotated[str | None, Named("BACKBONE"), ADVANCED] = None
    """Backbone for --create_base_model: a hub id, a folder or a file. Default: as in `lbm-lora base`."""
    config_path: Annotated[File | None, ADVANCED] = None
    """LBM's config.yaml for --create_base_model. Default: the one next to the tuned checkpoint."""

    @property
    def statistics(self) -> Path | None:
        """The statistics that weigh errors by the output: those given, or those made beside the LoRA."""
        made = self.save_to.with_name(f"{self.save_to.stem}_calibration.safetensors")
        return self.calibration or (made if self.calibration_images is not None else None)
