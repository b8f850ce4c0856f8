"""The options of the verb `data check`."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.configs.marks import ADVANCED, POSITIONAL, Batch, File, Folder, Named, Share, Size, Workers
from lbm_lora.errors import ConfigError, Option


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Read every pixel of a data set, and report what training would find.

    Raises:
        ConfigError: neither data nor a training file is given, or both.
    """

    data: Annotated[tuple[str, ...], Named("DATA"), POSITIONAL] = ()
    """A folder of pairs or of shards, or shards: paths, URLs, patterns with {000..009}."""
    path_config: File | None = None
    """Check the data of this training file, with its keys and sizes, instead of DATA."""
    image_size: tuple[Size, ...] = (512,)
    """Square roots of the pixel budgets that training will use."""
    batch_size: Batch = 8
    """Samples per training step, all processes together. Sets the number of steps in the report."""
    max_corrupt: Share = 0.05
    """Fail if a larger share of the samples than this is unreadable or incomplete."""
    source_key: Annotated[str, Named("KEY"), ADVANCED] = "source.jpg"
    """Ending of a sample's source image. Any image extension matches."""
    target_key: Annotated[str, Named("KEY"), ADVANCED] = "target.jpg"
    """Ending of a sample's target image."""
    mask_key: Annotated[str | None, Named("KEY"), ADVANCED] = None
    """Ending of a sample's mask, such as mask.png. Every sample must then have one. Default: no masks."""
    num_workers: Annotated[Workers, ADVANCED] = 0
    """Read with this many extra processes. 0 reads in the command's own process."""
    cache_dir: Annotated[Folder | None, ADVANCED] = None
    """Copy shards from URLs into this folder."""
    allow_pipe: Annotated[bool, ADVANCED] = False
    """Allow `pipe:` shards, which run a shell command."""

    def __post_init__(self) -> None:
        if self.path_config is None and not self.data:
            raise ConfigError(
                "Name the data to check: a folder, shards, or a training file with ", Option("path_config"), "."
            )
        if self.path_config is not None and self.data:
            raise ConfigError(f"'{self.data[0]}' and ", Option("path_config"), " both name the data. Give one of them.")
