"""The options of the verb `merge`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lbm_lora.configs.marks import ADVANCED, Bounds, Checkpoint, Count, File, Images, Lora, Named, Scale, Seed
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.values import AlphaIs, MergeMethod


@dataclass(frozen=True, kw_only=True)
class MergeConfig(OutputOptions):
    """Merge LoRAs into one that does what all of them do together, from their files alone. Without a limit nothing
    is lost but the rounding of --save_precision. A LoRA made on a tuned model and the extraction of that model
    merge into one LoRA for the base."""

    lora_path: tuple[Lora, ...]
    """LoRA files, in any order."""
    save_to: File
    """Write the LoRA here: a .safetensors file."""
    lora_scale: tuple[Scale, ...] = (1.0,)
    """Scale of each LoRA, or one for all: a LoRA merged at 0.5 acts as it does alone at 0.5; may be negative. By
    layer: 0.8,down_blocks=0.5,attn1=0."""
    rank: Count | None = None
    """Highest rank of linear layers. Default: as high as the LoRAs need together."""
    conv_rank: Count | None = None
    """Highest rank of conv layers. Default: half of --rank."""
    max_size: Annotated[str | None, Named("SIZE")] = None
    """Choose the ranks of all layers together: the best LoRA that a file of this size can hold (200MB, 800KB)."""
    max_error: Annotated[float | None, Named("SHARE")] = None
    """Write the smallest file whose total relative error is at most this: above 0, up to 1 (0.02: 2 %)."""
    max_output_error: Annotated[float | None, Named("SHARE")] = None
    """Write the smallest file whose relative error of the denoiser's output is at most this: above 0, up to 10 (0.05:
    5 %). Needs --calibration."""
    exact: bool = False
    """Put the factors side by side, in fp32, without a decomposition: the ranks add up."""
    method: MergeMethod = "sum"
    """Add the LoRAs up (sum), or let them interfere less: ties keeps the largest entries and the majority sign,
    dare drops entries at random, knots is ties in the LoRAs' common directions, core makes their directions
    orthogonal."""
    density: Annotated[float | None, Named("SHARE"), Bounds(0, 1), ADVANCED] = None
    """Share of the entries that ties, dare and knots keep of each LoRA. Default: 0.5."""
    seed: Annotated[Seed, ADVANCED] = 0
    """Seed for the entries that dare drops."""
    calibration: File | None = None
    """Minimise the error of the output instead of the weights, with these statistics from `lbm-lora
    calibrate`. Needs --rank, --max_size or --max_output_error."""
    images: Images | None = None
    """First fit the scales on these images, so that base + LoRAs comes closest to the tuned model's output. Needs
    --base_model_path and --tuned_model_path."""
    base_model_path: Checkpoint | None = None
    """Checkpoint that the LoRAs were made for. Only for fitting the scales."""
    tuned_model_path: Checkpoint | None = None
    """Fine-tuned checkpoint to come close to. Only for fitting the scales."""
    save_precision: Annotated[Literal["float", "fp16", "bf16", "int8"] | None, ADVANCED] = None
    """Store the LoRA in this precision. Default: that of the LoRAs; float where they differ, and for --exact."""
    allow_other_base: Annotated[bool, ADVANCED] = False
    """Continue even if the LoRAs were made from different bases. The result counts as made from the first one's."""
    lora_alpha_is: Annotated[AlphaIs, ADVANCED] = "auto"
    """Meaning of alpha in the LoRA files: rank ignores it (scaling 1), file uses it. auto: rank for files of the
    earlier implementation, else file."""
    device: Annotated[str, Named("DEVICE"), ADVANCED] = "auto"
    """Run the networks on this device to fit the scales: auto (CUDA if available, else the CPU), cpu, cuda or
    cuda:N."""
    config_path: Annotated[File | None, ADVANCED] = None
    """Read LBM's config.yaml from here, to fit the scales of checkpoints that have none in them or next to them."""
