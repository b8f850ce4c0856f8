"""The validation of a run: which pairs, shared out among the processes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import distributed

from lbm_lora.imaging.files import write_image
from lbm_lora.train.data import PairDataset
from lbm_lora.train.losses import Lpips
from lbm_lora.train.preview import Scores, Seen, chosen_indices, grid, look, summary
from lbm_lora.train.step import BridgeStep


class Validator:
    """Looks at the same pairs every time.

    Args:
        dataset: of the validation pairs.
        count: at most so many of them.
        num_steps: denoiser calls of the pictures.
        lpips: None leaves that score out.
    """

    def __init__(self, dataset: PairDataset, *, count: int, num_steps: Sequence[int], lpips: Lpips | None) -> None:
        self._dataset = dataset
        self._indices = chosen_indices(dataset, count)
        self._num_steps = tuple(num_steps)
        self._lpips = lpips

    def run(
        self, step: BridgeStep, *, rank: int = 0, world: int = 1, stop: Callable[[], bool] = lambda: False
    ) -> tuple[Scores, Image.Image] | None:
        """The scores and the grid of pictures, the same in every process; None where it was stopped.

        Args:
            stop: asked after each pair; all processes must answer alike.
        """
        # every process calls the model equally often, which sharded models need
        filled = self._indices + self._indices[:1] * (-len(self._indices) % world)
        mine: list[Seen] = []
        for one in look(step, self._dataset, filled[rank::world], self._num_steps, self._lpips):
            mine.append(one)
            if stop():
                return None
        seen = {one.index: one for one in _gathered(mine, world)}
        ordered = [seen[index] for index in self._indices]
        return summary(step, ordered), grid(ordered)

    @staticmethod
    def write_pictures(pictures: Image.Image, path: Path) -> Path:
        """Write the grid as a PNG file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(pictures, path)
        return path


def _gathered(mine: list[Seen], world: int) -> list[Seen]:
    if world == 1:
        return mine
    parts: list[Any] = [None] * world
    distributed.all_gather_object(parts, mine)
    return [one for part in parts for one in part]
