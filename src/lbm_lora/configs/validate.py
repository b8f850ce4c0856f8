"""The options of the verb `validate`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lbm_lora.configs.marks import (
    ADVANCED,
    Bounds,
    Checkpoint,
    File,
    Folder,
    Images,
    Lora,
    Named,
    Pattern,
    Seed,
    Size,
    Steps,
)
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.values import AlphaIs


@dataclass(frozen=True, kw_only=True)
class ValidateConfig(OutputOptions):
    """Compare base + LoRA with the tuned checkpoint, in weights and, with --images, in images."""

    base_model_path: Checkpoint
    """Checkpoint that the LoRA was made for; may be user/repo on the hub."""
    tuned_model_path: Checkpoint
    """The fine-tuned checkpoint."""
    lora_path: Lora
    """The LoRA: a file, or user/repo on the hub."""
    images: Images | None = None
    """Also compare the outputs of base, base + LoRA and tuned on these: an image, a folder or a quoted glob."""
    report: Folder | None = None
    """Write report.txt, report.json, report.html and lora_layer_names.txt to this folder. Default: LORA_report, next to
    the LoRA; in the current folder for a LoRA on the hub."""
    fail_above: Annotated[float | None, Named("SHARE"), Bounds(0)] = None
    """Exit with 1 if the total relative error of the weights is above this (0.05: 5 %)."""
    fail_below_psnr: Annotated[float | None, Named("DB")] = None
    """Exit with 1 if an image of base + LoRA is below this PSNR (dB) to the tuned model's. Needs --images."""
    num_inference_steps: tuple[Steps, ...] = ()
    """Calls of the denoiser per image, one number or several. Default: those the model was trained for (1 2 4)."""
    size: Size | None = None
    """Run --images at this size: the square root of the pixel budget (1024: about one megapixel). Default: the model's
    own."""
    device: Annotated[str, Named("DEVICE")] = "auto"
    """Run --images on this device: auto (CUDA if available, else the CPU), cpu, cuda, cuda:N or mps."""
    other_lora_path: Annotated[tuple[Lora, ...], ADVANCED] = ()
    """Also measure these LoRAs on --images. The report then plots the error of each against its size."""
    layer_names: Annotated[File | None, ADVANCED] = None
    """Write the list of layer names here. Default: lora_layer_names.txt in the report folder."""
    exclude: Annotated[tuple[Pattern, ...], ADVANCED] = ()
    """Leave these tensors out of the comparison: part of a name, a glob, or re:REGEX."""
    lpips_weights: Annotated[File | None, ADVANCED] = None
    """Also measure LPIPS on --images, with this file of VGG16, AlexNet or SqueezeNet (torchvision's names)."""
    lpips_net: Annotated[Literal["vgg", "alex", "squeeze"] | None, ADVANCED] = None
    """Also measure LPIPS on --images, with this network. Default: the one in --lpips_weights. Without that file,
    torchvision downloads the weights."""
    seed: Annotated[Seed, ADVANCED] = 0
    """Seed for the bridge noise."""
    torch_dtype: Annotated[Literal["float", "fp16", "bf16"], ADVANCED] = "float"
    """Run --images in this precision."""
    lora_alpha_is: Annotated[AlphaIs, ADVANCED] = "auto"
    """Meaning of alpha in a LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for files of the earlier
    implementation, else file."""
    config_path: Annotated[File | None, ADVANCED] = None
    """Read LBM's config.yaml from here, for checkpoints that have none in them or next to them."""
    allow_other_base: Annotated[bool, ADVANCED] = False
    """Continue even if the LoRA was made from another base."""
    allow_unmatched: Annotated[bool, ADVANCED] = False
    """Continue even if keys of the LoRA match nothing."""
