"""The options of the verb `train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Suppress


@dataclass(frozen=True, kw_only=True)
class TrainRunConfig:
    """Train as a YAML file says. Every key of it can be given here too: --learning_rate 1e-4."""

    path_config: Path
    """The training file; lora/lora_relight_config.yaml is an example."""
    overrides: Annotated[tuple[tuple[str, str], ...], Suppress] = ()
    """(key, YAML text) pairs that take the place of the file's values."""
