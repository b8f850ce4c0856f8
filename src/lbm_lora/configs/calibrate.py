"""The options of the verb `calibrate`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lbm_lora.configs.marks import ADVANCED, Bounds, Checkpoint, Count, File, Images, Named, Probes, Seed, Size
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.values import CONV_DENSE_UP_TO, DENSE_UP_TO, SKETCH_RANK


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(OutputOptions):
    """Measure on images which errors a tuned model's output is sensitive to; extract then spends its bytes on those."""

    tuned_model_path: Checkpoint
    """The fine-tuned checkpoint to measure; may be user/repo on the hub."""
    images: Images
    """Source images of the kind that the model is used on: images, folders or quoted globs ('pairs/*.source.png')."""
    save_to: File
    """Write the statistics here: a .safetensors file."""
    count: Count | None = None
    """Use only this many images, evenly spread over the sorted list. Default: all of them."""
    size: Size | None = None
    """Work at this size: the square root of the pixel budget (1024: about one megapixel). Default: the model's own."""
    device: Annotated[str, Named("DEVICE")] = "auto"
    """Run on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N."""
    timesteps: Annotated[tuple[float, ...], Named("T"), Bounds(0, 1000), ADVANCED] = ()
    """Measure only at these of the trained timesteps. Default: all of them, weighted by their probability."""
    probes: Annotated[Probes | None, ADVANCED] = None
    """Measure this many random directions of the output per image and timestep. More are slower and more accurate.
    Default: 4 for fewer than 16 images, else 1."""
    seed: Annotated[Seed, ADVANCED] = 0
    """Seed for the bridge noise, the probes and the sketches."""
    dense_up_to: Annotated[Seed, ADVANCED] = DENSE_UP_TO
    """Keep the complete second moment for layer sides up to this width, and a sketch for wider ones. Higher: more
    memory and a larger file."""
    sketch_rank: Annotated[Seed, ADVANCED] = SKETCH_RANK
    """Columns of a sketch. 0: keep only the diagonal."""
    conv_dense_up_to: Annotated[Seed, ADVANCED] = CONV_DENSE_UP_TO
    """Keep the complete second moment of the in * kh * kw inputs that a conv's kernel covers up to this many, and a
    sketch for more. 0: moments of the channels only, in a smaller file."""
    torch_dtype: Annotated[Literal["float", "bf16"], ADVANCED] = "bf16"
    """Run the networks in this precision. Sums are always fp32."""
    config_path: Annotated[File | None, ADVANCED] = None
    """Read LBM's config.yaml from here, for a checkpoint that has none in it or next to it."""
