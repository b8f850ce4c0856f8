"""How a front end shows an option: marks in its annotation, as in `Annotated[int, Bounds(1), ADVANCED]`.

ADVANCED      listed after the options that most runs need
POSITIONAL    a word of the command line without a flag
HIDDEN        filled by the front end, not by its user
Named("DIR")  placeholder for the value in a help text
Bounds(0, 1)  the allowed numbers
HUB_LORA      a path that may also name a LoRA on the Hugging Face hub; HUB_CHECKPOINT likewise
"""

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated


class Mark(Enum):
    """Marks without a value."""

    ADVANCED = "advanced"
    POSITIONAL = "positional"
    HIDDEN = "hidden"
    HUB_LORA = "hub lora"
    HUB_CHECKPOINT = "hub checkpoint"


ADVANCED, POSITIONAL, HIDDEN = Mark.ADVANCED, Mark.POSITIONAL, Mark.HIDDEN
HUB_LORA, HUB_CHECKPOINT = Mark.HUB_LORA, Mark.HUB_CHECKPOINT


@dataclass(frozen=True)
class Named:
    """Placeholder for a value in a help text, such as FOLDER."""

    word: str


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest number that an option takes."""

    least: float
    most: float = math.inf


File = Annotated[Path, Named("FILE")]
Folder = Annotated[Path, Named("FOLDER")]
Checkpoint = Annotated[Path, Named("CHECKPOINT"), HUB_CHECKPOINT]
"""A checkpoint: a file, an index of shards, a folder that holds one, or user/repo on the hub."""
Lora = Annotated[Path, Named("LORA"), HUB_LORA]
"""A LoRA: a file, or user/repo on the hub."""
Images = Annotated[str | tuple[str, ...], Named("IMAGES")]
"""Images, folders of images, or globs: one, or several."""
Pattern = Annotated[str, Named("PATTERN")]
Size = Annotated[int, Named("PIXELS"), Bounds(64, 16384)]
"""Square root of a pixel budget."""
Seed = Annotated[int, Bounds(0, 2**63 - 1)]
Count = Annotated[int, Bounds(1)]
Steps = Annotated[int, Bounds(1, 1000)]
"""Denoiser calls per image; LBM has 1,000 timesteps."""
Probes = Annotated[int, Bounds(1, 1024)]
Batch = Annotated[int, Bounds(1, 4096)]
Devices = Annotated[int, Bounds(1, 64)]
Nodes = Annotated[int, Bounds(1, 1024)]
Workers = Annotated[int, Bounds(0, 256)]
Threads = Annotated[int, Bounds(1, 1024)]
Scale = Annotated[float | str, Named("SCALE")]
"""Scale of a LoRA: a number, or the text of numbers by layer, which holds a `=`."""
Share = Annotated[float, Named("SHARE"), Bounds(0, 1)]
