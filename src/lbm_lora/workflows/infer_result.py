"""What the verb `infer` gives back."""

from dataclasses import dataclass
from pathlib import Path

from lbm_lora.shards.corrupt import Skipped
from lbm_lora.workflows.adapters import AppliedAdapter


@dataclass(frozen=True, kw_only=True)
class TranslatedImage:
    """One picture that was written."""

    source: Path
    output: Path
    comparison: Path | None
    """The side-by-side picture of --compare."""
    width: int
    """Of source and output, pixels."""
    height: int
    model_width: int
    """Of what the model worked on, pixels."""
    model_height: int
    seconds: float
    """Reading, networks and stretching; without the writing."""


@dataclass(frozen=True, kw_only=True)
class TranslatedShards:
    """What became of the shards, in all processes together."""

    folder: Path
    """Of the results: one shard for each, of the same name."""
    written: int
    """Shards that this run has written."""
    present: int
    """Shards that an earlier run had written."""
    pictures: int
    """Of this run."""
    skipped: tuple[Skipped, ...]
    """Samples of all shards written so far that cannot be used."""
    stopped_by: str
    """The signal that ended the run before its end, else empty."""


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """What `run` did."""

    outputs: tuple[TranslatedImage, ...]
    adapters: tuple[AppliedAdapter, ...]
    device: str
    dtype: str
    shards: TranslatedShards | None = None
    """Where shards were given; then there are no `outputs`."""
    rank: int = 0
    """Of this process among several; the first one, 0, speaks for all."""
