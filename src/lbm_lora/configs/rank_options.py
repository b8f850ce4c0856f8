"""The options that choose the ranks of an adapter."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.configs.marks import ADVANCED, Count, Named


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """How ranks are chosen; of the options after `conv_rank` one at the most."""

    rank: Count = 32
    """Rank of linear layers. 9999: as high as each matrix allows."""
    conv_rank: Count = 16
    """Rank of conv layers. 9999: as high as each matrix allows."""
    ranks: tuple[Count, ...] = ()
    """Write several LoRAs in one pass, one for each of these ranks of linear layers: LORA_r16.safetensors and so on.
    Conv ranks follow in the proportion of --conv_rank to --rank."""
    max_size: Annotated[tuple[str, ...], Named("SIZE")] = ()
    """Choose the ranks of all layers together: the best LoRA that a file of this size can hold (200MB, 1.5GB). Several
    sizes give several LoRAs: LORA_200MB.safetensors and so on."""
    max_error: Annotated[float | None, Named("SHARE")] = None
    """Write the smallest file whose total relative error of the weights is at most this: above 0, up to 1 (0.3: 30 %).
    Not with calibration."""
    max_output_error: Annotated[float | None, Named("SHARE")] = None
    """Write the smallest file whose relative error of the denoiser's output is at most this: above 0, up to 10 (0.05:
    5 %). Needs calibration."""
    min_psnr: Annotated[float | None, Named("DB")] = None
    """Write the smallest file with which each of --images, else of --calibration_images, reaches this PSNR (dB) to the
    tuned model's one-step image. Needs calibration."""
    keep_energy: Annotated[float | None, Named("SHARE"), ADVANCED] = None
    """Give each layer the rank that keeps this share of its energy: above 0, up to 1 (0.95: 95 %)."""
    max_module_error: Annotated[float | None, Named("SHARE"), ADVANCED] = None
    """Give each layer the rank that keeps its relative error at or below this: above 0, up to 1 (0.3: 30 %)."""
