"""Measure a checkpoint's statistics on images, or reuse those of an earlier run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lbm_lora.calibration.check_points import with_checks
from lbm_lora.calibration.collect import collect
from lbm_lora.calibration.statistics import CalibrationSettings, Statistics
from lbm_lora.calibration.statistics_file import load_statistics, save_statistics
from lbm_lora.calibration.sums import PartialFile
from lbm_lora.checkpoint import Checkpoint, fingerprint
from lbm_lora.errors import CheckpointError, Option, OutputError
from lbm_lora.files import Outputs
from lbm_lora.imaging.digests import digests_of
from lbm_lora.model.build import load_model
from lbm_lora.model.device import resolve_device
from lbm_lora.model.resolve import around, resolve_config
from lbm_lora.model.schedule import schedule_of
from lbm_lora.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Options for measuring the statistics of a checkpoint.

    Attributes:
        dtype: dtype that the networks run in.
        config_path: LBM's config.yaml, for a checkpoint that has none in it or next to it.
    """

    images: Sequence[Path]
    settings: CalibrationSettings
    dtype: torch.dtype = torch.bfloat16
    device: str = "auto"
    config_path: Path | None = None

    def measure(self, tuned: Checkpoint, partial: PartialFile | None, progress: Progress) -> Statistics:
        """Measure an open checkpoint.

        Args:
            partial: file to which the sums are saved periodically.
        """
        device = resolve_device(self.device, fp64="the sums need")
        digests = digests_of(self.images)
        progress.start(0, "loading the tuned model")
        model = load_model(tuned, config_path=self.config_path, device=device, dtype=self.dtype)
        statistics = collect(
            model,
            self.images,
            self.settings,
            tuned=fingerprint(tuned.component()).digest,
            around=around(tuned, model.config),
            digests=digests,
            partial=partial,
            progress=progress,
        )
        if self.dtype != torch.float32:  # LoRAs are run in fp32
            progress.start(0, "loading the tuned model in fp32")
            del model
            model = load_model(
                tuned, config_path=self.config_path, device=device, dtype=torch.float32, is_streamed=True
            )
        return with_checks(statistics, model, self.images, progress)

    def measure_to(self, path: Path, tuned: Checkpoint, *, overwrite: bool, progress: Progress) -> Statistics:
        """Measure, and write the statistics. A stopped run resumes from its last saved sums, next to them."""
        partial = PartialFile(path, overwrite=overwrite)
        statistics = self.measure(tuned, partial, progress)
        progress.start(0, "writing")
        save_statistics(statistics, path)
        partial.remove()
        return statistics

    def file_at(self, path: Path, tuned: Checkpoint, *, overwrite: bool, progress: Progress) -> Statistics:
        """Return the statistics in a file if they are what measuring would give, else measure, and write them there."""
        try:
            found = load_statistics(path) if path.is_file() else None
        except CheckpointError:
            if not overwrite:
                raise
            found = None
        if found is None:
            self.measure_to(path, tuned, overwrite=overwrite, progress=progress)
            return load_statistics(path)
        lbm = resolve_config(tuned, config_path=self.config_path)
        wanted = self.settings.origin(
            tuned=fingerprint(tuned.component()).digest,
            count=len(self.images),
            dtype=self.dtype,
            images=digests_of(self.images).together,
            schedule=schedule_of(lbm, self.settings.timesteps),
            around=around(tuned, lbm),
        )
        if found.origin == wanted:
            progress.note(f"{path} was measured on these images: it is used again.")
            return found
        if not overwrite:
            raise OutputError(
                f"{path} holds statistics of another model, other images or other settings, or is of an earlier "
                "version. Move it, choose another output path, or use ",
                Option("overwrite"),
                " to replace it.",
            )
        self.measure_to(path, tuned, overwrite=overwrite, progress=progress)
        return load_statistics(path)


def plan_statistics(outputs: Outputs, path: Path) -> Outputs:
    """Note the file of statistics, and that of unfinished sums."""
    return outputs.writes(path).writes(PartialFile(path).path, "the file of unfinished sums")
