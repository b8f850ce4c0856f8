"""The options of the verb `extract`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbm_lora.configs.rank_options import RankOptions


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(RankOptions):
    """Extract a LoRA: the change of a fine-tune, matrices as low-rank factors, biases and norms dense."""

    base_model_path: Path
    """Checkpoint that the tuned one started from (.safetensors, shards with an index, .ckpt, or a folder)."""
    tuned_model_path: Path
    """The fine-tuned checkpoint."""
    save_to: Path
    """Where to write the LoRA: a .safetensors file."""
    calibration: Path | None = None
    """Statistics of the tuned model from `lbm-lora calibrate`: least error of its output instead of the weights."""
    calibration_images: str | None = None
    """Folder, image or quoted glob of sources: make those statistics first, beside the LoRA."""
    check: bool = True
    """Run a calibrated LoRA on the states that the statistics hold, in fp32, and correct what is predicted by it."""
    images: str | None = None
    """Images to run a calibrated LoRA on: their PSNR to the tuned model's one-step images."""
    include: tuple[str, ...] = ()
    """Only tensors that one of these patterns matches: part of a name, a glob, or re:REGEX."""
    exclude: tuple[str, ...] = ()
    """Leave these tensors out; wins over --include."""
    target_coverage: Literal["full", "attention", "extended"] = "full"
    """Which layers: all, attention only (attn1 and attn2), or attention with feed-forward and projections."""
    dense: bool = True
    """Keep the changes of biases and norms, as dense deltas."""
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

    @property
    def statistics(self) -> Path | None:
        """The statistics that weigh errors by the output: those given, or those made beside the LoRA."""
        made = self.save_to.with_name(f"{self.save_to.stem}_calibration.safetensors")
        return self.calibration or (made if self.calibration_images is not None else None)
