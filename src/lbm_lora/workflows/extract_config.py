"""The flags of the verb `extract`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Extract a LoRA: the change of a fine-tune, matrices as low-rank factors, biases and norms whole."""

    base_model_path: Path
    """Checkpoint that the tuned one started from (.safetensors, shards with an index, .ckpt, or a folder)."""
    tuned_model_path: Path
    """The fine-tuned checkpoint."""
    save_to: Path
    """Where to write the LoRA: a .safetensors file."""
    rank: int = 32
    """Rank of linear layers. 9999: as high as each matrix allows."""
    conv_rank: int = 16
    """Rank of conv layers. 9999: as high as each matrix allows."""
    ranks: tuple[int, ...] = ()
    """Several LoRAs in one pass, one for each of these ranks of linear layers, named LORA_r16.safetensors and so on.
    Their conv ranks are in the proportion of --conv_rank to --rank."""
    calibration: Path | None = None
    """Statistics of the tuned model from `lbm-lora calibrate`: least error of its output instead of the weights."""
    calibration_images: str | None = None
    """Folder, picture or quoted glob of sources: make those statistics first, beside the LoRA."""
    check: bool = True
    """Run a calibrated LoRA on the states that the statistics hold, in fp32, and correct what is predicted by it."""
    images: str | None = None
    """Pictures to run a calibrated LoRA on: their PSNR to the tuned model's one-step pictures."""
    max_size: tuple[str, ...] = ()
    """Ranks chosen for all layers together: the best that a file of this size can hold (200MB, 1.5GB). Several sizes
    give several LoRAs, named LORA_200MB.safetensors and so on."""
    max_error: float | None = None
    """The smallest file whose total relative error (of the weights) is at most this (0.3: 30 %)."""
    max_output_error: float | None = None
    """The smallest file whose relative error of the denoiser's output is at most this. Needs calibration."""
    min_psnr: float | None = None
    """The smallest file with which each of --images (else of --calibration_images) comes out with this PSNR (dB) to the
    tuned model's one-step picture. Needs calibration."""
    keep_energy: float | None = None
    """For each layer the rank that keeps this share of its energy (0.95)."""
    max_module_error: float | None = None
    """For each layer the rank whose relative error is at most this (0.3)."""
    include: tuple[str, ...] = ()
    """Only tensors that one of these patterns matches: part of a name, a glob, or re:REGEX."""
    exclude: tuple[str, ...] = ()
    """Leave these tensors out; wins over --include."""
    target_coverage: Literal["full", "attention", "extended"] = "full"
    """Which layers: all, attention only (attn1 and attn2), or attention with feed-forward and projections."""
    dense: bool = True
    """Keep the changes of biases and norms, whole."""
    save_precision: Literal["float", "fp16", "bf16", "int8"] | None = None
    """Precision of the file. Default: bf16; with calibration fp16, which rounds 8 times finer in the same bytes. int8
    has twice the ranks in them, for this program alone: other readers do not know its keys."""
    min_diff: float = 0.0
    """Leave out tensors whose largest change is below this; they enter the ledger."""
    device: str = "auto"
    """Where matrices are decomposed: auto (CUDA where there is one), cpu, cuda or cuda:N."""
    create_base_model: bool = False
    """Where --base_model_path does not exist: make the base there first, from --backbone_signature."""
    backbone_signature: str | None = None
    """Backbone for --create_base_model. Default: as in `lbm-lora base`."""
    config_path: Path | None = None
    """LBM's config.yaml for --create_base_model. Default: the one beside the tuned checkpoint."""
