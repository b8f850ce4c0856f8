"""Training runs that are prepared, and what they note."""

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.progress import Silent
from lbm_lora.training.launch import open_fabric
from lbm_lora.training.prepare import PreparedRun
from lbm_lora.training.settings import TrainConfig


class Notes(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def prepared(config: TrainConfig, notes: Notes | None = None) -> PreparedRun:
    """Prepare a run on its base."""
    assert config.base_model_path is not None
    with open_checkpoint(config.base_model_path) as base:
        return PreparedRun(config, base, open_fabric("cpu", 1, 1, "auto"), notes or Notes())
