"""Types of a verb's parameters: what a Python caller may give, and how the command line takes it.

A type checker sees what Python takes (`Base`: a path, an open checkpoint, a state dict); the command line and `help()`
see marks in an annotation:

ADVANCED      listed after the options that most runs need
POSITIONAL    a word of the command line without a flag
REQUIRED      the command line needs it, Python does not
HIDDEN        for Python only
VALUE         Python may give an object in place of the path
Named("DIR")  placeholder for the value in a help text
FlagName("name")  name on the command line, if it is another one
CommandDefault(x)  what the command line gives where the flag is left out, unlike Python
Doc("...")    text of an option that several verbs share; else it stands in the verb's docstring
Interval      the allowed numbers (annotated_types), in Python as on the command line
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval

from lbm_lora.choices import ForeignFormat


class Mark(Enum):
    """Marks without a value."""

    ADVANCED = "advanced"
    POSITIONAL = "positional"
    REQUIRED = "required"
    HIDDEN = "hidden"
    VALUE = "value"


ADVANCED, POSITIONAL, REQUIRED, HIDDEN, VALUE = Mark


@dataclass(frozen=True)
class Named:
    """Placeholder for a value in a help text, such as FOLDER."""

    word: str


@dataclass(frozen=True)
class FlagName:
    """Name of a parameter on the command line."""

    name: str


@dataclass(frozen=True)
class CommandDefault:
    """Value that the command line gives where a flag is left out, and Python does not."""

    value: object


@dataclass(frozen=True)
class Doc:
    """Effect of an option, in sentences."""

    text: str


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypeVar

    import torch
    from torch import nn

    from lbm_lora.adapter import Adapter
    from lbm_lora.calibration import Statistics
    from lbm_lora.checkpoint import CheckpointLike
    from lbm_lora.fidelity.network import Run
    from lbm_lora.verbs.values import ImageLike

    T = TypeVar("T")
    Several = T | Sequence[T]
    File = Folder = Path | str
    Output = OutputFolder = Path | str | None
    Base = Tuned = Model = CheckpointLike
    Network = CheckpointLike | nn.Module
    Lora = Path | str | Adapter
    Calibration = Path | str | Statistics | None
    Images = Path | str | ImageLike | Sequence[Path | str | ImageLike]
    TrainingFile = Path | str | Mapping[str, Any] | None
    Mask = Images | None
    ImageOutput = Path | str
    NetworkRun = Run | None
    Samples = Images | Run
    Precision = Literal["float", "fp16", "bf16"] | torch.dtype
    FloatOrBf16 = Literal["float", "bf16"] | torch.dtype
    LoraPrecision = Literal["float", "fp16", "bf16", "int8"] | torch.dtype | None
    ExtractPrecision = Literal["auto", "float", "fp16", "bf16", "int8"] | torch.dtype | None
else:

    class Several:
        """`Several[int]`: one value or a list of them; the command line takes words up to the next flag."""

        def __class_getitem__(cls, kind: object) -> object:
            return tuple[kind, ...]

    File = Annotated[Path, Named("FILE")]
    Folder = Annotated[Path, Named("FOLDER")]
    Output = Annotated[Path | None, Named("FILE"), FlagName("save_to"), REQUIRED]
    OutputFolder = Annotated[Path | None, Named("FOLDER")]
    Model = Annotated[Path, Named("CHECKPOINT"), VALUE]
    Base = Annotated[Model, FlagName("base_model_path")]
    Tuned = Annotated[Model, FlagName("tuned_model_path")]
    Network = Model
    Lora = Annotated[Path, Named("LORA"), FlagName("lora_path"), VALUE]
    Calibration = Annotated[Path | None, Named("FILE"), FlagName("calibration"), VALUE]
    Images = Annotated[str | tuple[str, ...], Named("IMAGES"), VALUE]
    TrainingFile = Annotated[Path | None, Named("FILE"), FlagName("path_config"), REQUIRED, VALUE]
    Mask = Annotated[str | None, Named("MASK"), VALUE]
    ImageOutput = Annotated[str, Named("PATH"), FlagName("output_path"), VALUE]
    NetworkRun = Annotated[object, HIDDEN, VALUE]
    Samples = Images
    Precision = Literal["float", "fp16", "bf16"]
    FloatOrBf16 = Literal["float", "bf16"]
    LoraPrecision = Literal["float", "fp16", "bf16", "int8"] | None
    ExtractPrecision = Literal["auto", "float", "fp16", "bf16", "int8"] | None

Count = Annotated[int, Interval(ge=1)]
Share = Annotated[float, Named("SHARE"), Interval(ge=0, le=1)]
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
Size = Annotated[int, Named("PIXELS"), Interval(ge=64, le=16384)]
"""Square root of a pixel budget."""
WorkSize = Annotated[
    Size | None,
    Doc(
        "Work at this size: the square root of the pixel budget (1024: about one megapixel). Default: the model's own."
    ),
]
Timesteps = Annotated[Several[Annotated[float, Named("T"), Interval(ge=0, le=1000)]], ADVANCED]
Steps = Annotated[int, Interval(ge=1, le=1000)]
"""Denoiser calls per image; LBM has 1,000 timesteps."""
Probes = Annotated[int, Interval(ge=1, le=1024)]
Batch = Annotated[int, Interval(ge=1, le=4096)]
Workers = Annotated[int, Interval(ge=0, le=256)]
Pattern = Annotated[str, Named("PATTERN")]
Scale = Annotated[float | str, Named("SCALE")]
"""Scale of a LoRA: a number, or the text of numbers by layer, which holds a `=`."""

LoraScale = Annotated[
    Scale,
    Doc(
        "Scale of each LoRA, or one for all: 0 is the base, 1 the LoRA as it was made; may be negative. By layer: "
        "0.8,down_blocks=0.5,attn1=0 is 0.8, but 0.5 where down_blocks matches a name, and 0 where attn1 does (the "
        "last match counts). A pattern is part of a name, a glob, or re:REGEX."
    ),
]
Rank = Annotated[Count | None, Doc("Rank of linear layers. 9999: as high as each matrix allows. Default: 32.")]
"""None: the default, which does not go together with a rank."""
ConvRank = Annotated[Count | None, Doc("Rank of conv layers. Default: half of the rank, 16 for 32; full for 9999.")]
Ranks = Annotated[
    Several[Count],
    Doc(
        "Write several LoRAs in one pass, one for each of these ranks of linear layers: LORA_r16.safetensors and so "
        "on. The conv rank of each is half of its rank, or `conv_rank` for all."
    ),
]
MaxSizes = Annotated[
    Several[str],
    Named("SIZE"),
    Doc(
        "Choose the ranks of all layers together: the best LoRA that a file of this size can hold (200MB, 800KB). "
        "Several sizes give several LoRAs: LORA_200MB.safetensors and so on."
    ),
]
KeepEnergy = Annotated[
    float | None,
    Named("SHARE"),
    ADVANCED,
    Doc("Give each layer the rank that keeps this share of its energy: above 0, up to 1 (0.95: 95 %)."),
]
MaxModuleError = Annotated[
    float | None,
    Named("SHARE"),
    ADVANCED,
    Doc("Give each layer the rank that keeps its relative error at or below this: above 0, up to 1 (0.3: 30 %)."),
]
Also = Annotated[
    Several[ForeignFormat],
    ADVANCED,
    Doc(
        "Also write the LoRA in these formats, next to the native file: NAME.comfyui.safetensors, and so on. What a "
        "format cannot hold is left out there, with a warning."
    ),
]
Overwrite = Annotated[
    bool,
    ADVANCED,
    Doc("Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never replaced."),
]
Device = Annotated[
    str, Named("DEVICE"), Doc("Run on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N.")
]
LoraAlphaIs = Annotated[
    Literal["auto", "rank", "file"],
    ADVANCED,
    Doc(
        "Meaning of alpha in a LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for files of the "
        "earlier implementation, else file."
    ),
]
Crop = Annotated[
    bool,
    ADVANCED,
    Doc(
        "Crop the attn2 keys and values of a LoRA made for SDXL to their first columns, as the exact base does. "
        "Default: leave them out, because an LBM's attn2 sees the image, not text."
    ),
]
AllowOtherBase = Annotated[bool, ADVANCED, Doc("Continue even if a LoRA was made from another base.")]
AllowUnmatched = Annotated[bool, ADVANCED, Doc("Continue even if keys of a LoRA match nothing in the model.")]
ConfigPath = Annotated[
    File | None,
    ADVANCED,
    Named("FILE"),
    Doc("Read LBM's config.yaml from here, for a checkpoint that has none in it or next to it."),
]

# of a model that translates images, alone or in shards
AnyBase = Annotated[
    Base,
    Doc(
        "Checkpoint that the LoRAs were made for, or any LBM checkpoint; may be user/repo on the hub. If it does not "
        "exist and `backbone_signature` is given, the exact base is made there."
    ),
]
Loras = Annotated[
    Several[Lora],
    Doc("LoRAs, all applied together: files, or user/repo on the hub. Default: the checkpoint as it is."),
]
ImageSteps = Annotated[Steps, Doc("Calls of the denoiser per image. Published LBMs are trained for 1, 2 and 4.")]
ImageSeed = Annotated[
    Seed,
    Doc(
        "Seed for the noise between steps. An image's result depends on the seed alone, not on other images in the run."
    ),
]
KeepDetail = Annotated[
    Share,
    Doc(
        "Put this share of the source's fine detail into the result: 0 leaves it as the model makes it, 1 replaces all "
        "of the result's detail."
    ),
]
MatchColor = Annotated[
    Share,
    Doc(
        "Move the result's colours to the source's by this share: 1 gives each channel the mean and spread that it has "
        "in the source."
    ),
]
LoraMode = Annotated[
    Literal["fused", "live"],
    ADVANCED,
    Doc("Add the LoRAs to the weights once (fused: steps cost nothing extra), or compute them in every step (live)."),
]
AnyDevice = Annotated[
    str,
    Named("DEVICE"),
    Doc("Run on this device: auto (CUDA if available, else the CPU), cpu, cuda, cuda:N or mps (untested)."),
]
NetworkPrecision = Annotated[Precision, Doc("Run the networks in this precision.")]
SamplePosterior = Annotated[
    bool,
    ADVANCED,
    Doc("Sample the VAE's posterior, as LBM's own inference does, instead of taking its mean."),
]
VaeTiling = Annotated[
    Literal["auto", "on", "off"],
    ADVANCED,
    Doc("Decode in overlapping tiles, which takes less memory. auto: if a side has more than 1024 pixels."),
]
AttentionOnly = Annotated[
    bool, ADVANCED, Doc("Apply only the part of the LoRAs whose keys contain attn1.to or attn2.to.")
]
Backbone = Annotated[
    str | None,
    Named("BACKBONE"),
    ADVANCED,
    Doc("Hub id, folder or file of the backbone. Only used if `base` does not exist."),
]
