"""Where a run stands, and where an earlier part of it has ended."""

import math
from dataclasses import dataclass

from lbm_lora.trainable.state import TrainState
from lbm_lora.training.run.validation import Scores


@dataclass
class Standing:
    """Position and metrics of a run.

    Attributes:
        step: completed optimizer steps, including earlier parts of the run.
        epoch, batch: the next batch of the data.
        best, best_step: the best metric so far (larger is better), and the step after which it was measured. A step
            without a metric: the best save so far, if there is one, is another validation's.
        validated: the last step after which a validation ran; -1 for none.
        loss: mean over the last logged steps; NaN before the first log line.
        scores: scores of the last validation.
        stopped_by: name of the signal that stopped the run early, else empty.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None
    best_step: int | None = None
    validated: int = -1
    loss: float = math.nan
    scores: Scores | None = None
    stopped_by: str = ""


def standing_of(state: TrainState | None) -> Standing:
    """Return the position at the start of a run, or where an earlier part ended."""
    if state is None:
        return Standing()
    return Standing(
        step=state.step,
        epoch=state.epoch,
        batch=state.batch,
        best=state.best,
        best_step=state.best_step,
        validated=state.validated,
    )
