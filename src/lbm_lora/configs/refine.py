"""The options of the verb `refine`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lbm_lora.configs.marks import ADVANCED, Batch, Bounds, Checkpoint, Count, File, Images, Lora, Named, Seed, Size
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.values import AlphaIs, ForeignFormat


@dataclass(frozen=True, kw_only=True)
class RefineConfig(OutputOptions):
    """Train a LoRA on the tuned model's own outputs on images, keeping its ranks; the better one is kept."""

    base_model_path: Checkpoint
    """Checkpoint that the LoRA was made for."""
    tuned_model_path: Checkpoint
    """The fine-tuned checkpoint whose outputs the LoRA is trained on."""
    lora_path: Lora
    """The LoRA to refine: a file, or user/repo on the hub. The best start is a calibrated extraction."""
    images: Images
    """Source images of the kind that the model is used on; more are better: a folder or a quoted glob
    ('pairs/*.source.png')."""
    save_to: File
    """Write the refined LoRA here: a .safetensors file."""
    held_images: Images | None = None
    """Measure on these held-out images. Default: one in 8 of --images, up to 16, which are then not trained on."""
    method: Literal["adam", "joint"] = "adam"
    """Train everything with Adam (adam), or fit only biases, norms and one factor per rank together, in a few steps of
    Gauss and Newton (joint): quicker, with less gain, and nothing to install."""
    steps: Count | None = None
    """Steps of the method. Default: 200 of Adam, at most 6 of the joint fit."""
    batch_size: Batch = 16
    """Points of the bridge per step. They pass through the network together: use 1 or 2 for the full-size model."""
    size: Size | None = None
    """Work at this size: the square root of the pixel budget (1024: about one megapixel). Default: the model's own."""
    device: Annotated[str, Named("DEVICE")] = "auto"
    """Run on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N."""
    learning_rate: Annotated[float, ADVANCED] = 0.04
    """Learning rate of Adam, relative to the root mean square of each tensor's values times the error of the given
    LoRA."""
    mirror: Annotated[bool, ADVANCED] = True
    """Also train on mirrored images."""
    timesteps: Annotated[tuple[float, ...], Named("T"), Bounds(0, 1000), ADVANCED] = ()
    """Train only at these of the trained timesteps. Default: all of them, drawn by their probability."""
    seed: Annotated[Seed, ADVANCED] = 0
    """Seed for the bridge noise and the order of the images."""
    save_precision: Annotated[Literal["float", "fp16", "bf16", "int8"] | None, ADVANCED] = None
    """Store the LoRA in this precision. Default: that of the given LoRA."""
    also: Annotated[tuple[ForeignFormat, ...], ADVANCED] = ()
    """Also write the LoRA in these formats, next to the native file: NAME.comfyui.safetensors, and so on. What a format
    cannot hold is left out there, with a warning."""
    torch_dtype: Annotated[Literal["float", "bf16"], ADVANCED] = "float"
    """Run the networks in this precision. bf16 cannot see errors below about 1 %."""
    lora_alpha_is: Annotated[AlphaIs, ADVANCED] = "auto"
    """Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for files of the
    earlier implementation, else file."""
    config_path: Annotated[File | None, ADVANCED] = None
    """Read LBM's config.yaml from here, for checkpoints that have none in them or next to them."""
