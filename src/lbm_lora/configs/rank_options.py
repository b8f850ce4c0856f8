"""The options that choose the ranks of an adapter."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """How ranks are chosen; of the options after `conv_rank` one at the most."""

    rank: int = 32
    """Rank of linear layers. 9999: as high as each matrix allows."""
    conv_rank: int = 16
    """Rank of conv layers. 9999: as high as each matrix allows."""
    ranks: tuple[int, ...] = ()
    """Several LoRAs in one pass, one for each of these ranks of linear layers, named LORA_r16.safetensors and so on.
    Their conv ranks are in the proportion of --conv_rank to --rank."""
    max_size: tuple[str, ...] = ()
    """Ranks chosen for all layers together: the best that a file of this size can hold (200MB, 1.5GB). Several sizes
    give several LoRAs, named LORA_200MB.safetensors and so on."""
    max_error: float | None = None
    """The smallest file whose total relative error (of the weights) is at most this (0.3: 30 %)."""
    max_output_error: float | None = None
    """The smallest file whose relative error of the denoiser's output is at most this. Needs calibration."""
    min_psnr: float | None = None
    """The smallest file with which each of --images (else of --calibration_images) comes out with this PSNR (dB) to the
    tuned model's one-step image. Needs calibration."""
    keep_energy: float | None = None
    """For each layer the rank that keeps this share of its energy (0.95)."""
    max_module_error: float | None = None
    """For each layer the rank whose relative error is at most this (0.3)."""
