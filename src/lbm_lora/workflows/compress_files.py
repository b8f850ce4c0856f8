"""The files of `compress`: their folder and their names, and the base that is there already."""

import os
from dataclasses import dataclass
from pathlib import Path

from lbm_lora.configs.compress import CompressConfig
from lbm_lora.errors import ConfigError, Option
from lbm_lora.hub import hub_name

_BASE_NAMES = ("exact_base.safetensors", "exact_base.ckpt")
_FRACTION = 50  # of the tuned checkpoint's bytes: the default size of a LoRA


@dataclass(frozen=True)
class CompressFiles:
    """Where everything is written.

    Attributes:
        folder: the folder of all files.
        name: the name of the LoRA.
    """

    folder: Path
    name: str

    @classmethod
    def of(cls, config: CompressConfig) -> "CompressFiles":
        """Return the files of a command, whose checkpoint is as it was given: a name on the hub gives its own.

        Raises:
            ConfigError: the given name is a path.
        """
        name = name_of(config)
        return cls(config.output or Path(f"{name}_lora"), name)

    @property
    def base(self) -> Path:
        """The base, if it is made."""
        return self.folder / _BASE_NAMES[0]

    @property
    def statistics(self) -> Path:
        """The calibration statistics, if they are measured."""
        return self.folder / "calibration.safetensors"

    @property
    def lora(self) -> Path:
        """The LoRA."""
        return self.folder / f"{self.name}_lora.safetensors"

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.folder / "report"

    def found_base(self, tuned: Path) -> Path | None:
        """Return the base in the folder, else the one next to a checkpoint, or None if there is none."""
        places = (self.folder, tuned if tuned.is_dir() else tuned.parent)
        candidates = [place / name for place in places for name in _BASE_NAMES]
        return next((path for path in candidates if path.is_file()), None)


def name_of(config: CompressConfig) -> str:
    """Return the name for the files: by default that of the checkpoint, or of its folder or repository if that is more
    specific.

    Raises:
        ConfigError: the given name is a path.
    """
    if config.name is not None:
        if Path(config.name).name != config.name:
            raise ConfigError(Option("name"), f" {config.name} must be a file name, not a path.")
        return config.name
    on_hub = hub_name(config.tuned)
    if on_hub is not None:
        return on_hub.repo.partition("/")[2] if on_hub.stem == "model" else on_hub.stem
    # as it was given: a link may lead to `v3`, or to a hash
    tuned = Path(os.path.abspath(config.tuned))  # noqa: PTH100
    if tuned.is_dir():
        return tuned.name
    stem = Path(tuned.name.removesuffix(".index.json")).stem
    return tuned.parent.name if stem.partition(".")[0] == "model" else stem


def size_of(config: CompressConfig, tuned_nbytes: int) -> str:
    """Return the largest size of the LoRA: by default a fiftieth of the tuned checkpoint's bytes."""
    return config.size or f"{tuned_nbytes / _FRACTION / 1e6:.3g}MB"
