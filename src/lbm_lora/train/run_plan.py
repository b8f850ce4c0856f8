"""What a run is, apart from its model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbm_lora.train.config import TrainConfig
from lbm_lora.train.data import PairDataset
from lbm_lora.train.folder import RunFolder
from lbm_lora.train.state import TrainState, Values
from lbm_lora.train.validation import Validator

Write = Callable[[Values, int, Path], None]
"""(values of what learns, step, path): write the result of a step."""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Attributes:
    total: optimizer steps of the whole run.
    state: what it goes on from.
    identity: see `TrainState`.
    write: writes the file of a step.
    train: the training pairs, which count what is corrupt.
    validator: None where there are no validation pairs.
    """

    config: TrainConfig
    folder: RunFolder
    total: int
    state: TrainState | None
    identity: dict[str, Any]
    write: Write
    train: PairDataset
    validator: Validator | None
