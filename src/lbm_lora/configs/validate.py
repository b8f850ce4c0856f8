"""The options of the verb `validate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbm_lora.configs.values import AlphaIs


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Compare base + LoRA with the tuned checkpoint, in weights and, with --images, in images."""

    base_model_path: Path
    """Checkpoint that the LoRA is relative to."""
    tuned_model_path: Path
    """The fine-tuned checkpoint."""
    lora_path: Path
    """The LoRA file."""
    lora_alpha_is: AlphaIs = "auto"
    """What alpha in a LoRA file means: the rank (scaling 1), or what it says (file). auto: the rank in files of the
    earlier implementation, else what it says."""
    images: str | tuple[str, ...] | None = None
    """Images, folders or quoted globs: also compare the outputs of base, base + LoRA and tuned on them."""
    other_lora_path: tuple[Path, ...] = ()
    """Further LoRAs to measure on --images; the report then shows the error of all against their sizes."""
    report: Path | None = None
    """Folder for report.txt, report.json, report.html and lora_layer_names.txt. Default: LORA_report beside it."""
    layer_names: Path | None = None
    """Where to write the list of layer names. Default: lora_layer_names.txt in the report folder."""
    fail_above: float | None = None
    """Exit with 1 where the total relative error is above this (0.05: 5 %)."""
    fail_below_psnr: float | None = None
    """Exit with 1 where an image of base + LoRA is below this PSNR (dB) to the tuned model's. Needs --images."""
    exclude: tuple[str, ...] = ()
    """Tensors that need not agree in base and tuned; they are left out of the comparison."""
    num_inference_steps: tuple[int, ...] = ()
    """Denoiser calls for --images, one number or several. Default: those the model was trained for (1 2 4)."""
    lpips_weights: Path | None = None
    """Also measure LPIPS on --images, with this file of VGG16, AlexNet or SqueezeNet (torchvision's names)."""
    lpips_net: Literal["vgg", "alex", "squeeze"] | None = None
    """The network of LPIPS. Default: what the file holds. Without a file, torchvision downloads the weights."""
    seed: int = 0
    """Of the noise of the bridge."""
    size: int | None = None
    """Square root of the pixel budget for --images. Default: the model's own."""
    device: str = "auto"
    """Where --images run: auto, cpu, cuda, cuda:N or mps."""
    torch_dtype: Literal["float", "fp16", "bf16"] = "float"
    """Precision that --images run in."""
    config_path: Path | None = None
    """LBM's config.yaml, for checkpoints that have none beside them or in them."""
    allow_other_base: bool = False
    """Go on where the LoRA was made from another base."""
    allow_unmatched: bool = False
    """Go on where keys of the LoRA match nothing."""
