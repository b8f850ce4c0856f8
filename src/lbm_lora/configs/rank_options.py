"""The options that choose the ranks of an adapter."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.configs.marks import ADVANCED, Count, Named


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """Options for choosing ranks; at most one of those after `conv_rank` may be given."""

    rank: Count | None = None
    """Rank of linear layers. 9999: as high as each matrix allows. Default: 32."""
    conv_rank: Count | None = None
    """Rank of conv layers. Default: half of the rank, 16 for 32; full for 9999."""
    ranks: tuple[Count, ...] = ()
    """Write several LoRAs in one pass, one for each of these ranks of linear layers: LORA_r16.safetensors and so on.
    The conv rank of each is half of its rank, or --conv_rank for all."""
    max_size: Annotated[tuple[str, ...], Named("SIZE")] = ()
    """Choose the ranks of all layers together: the best LoRA that a file of this size can hold (200MB, 800KB). Several
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
