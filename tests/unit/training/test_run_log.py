"""The meter and the logs of a run."""

import csv
import errno
from collections.abc import Callable

import pytest
from PIL import Image

from lbm_lora.errors import MissingExtraError, OutputError
from lbm_lora.training import run_log as module
from lbm_lora.training.checkpoint import RunFolder
from lbm_lora.training.run_log import RunLog, check_logger
from lbm_lora.training.settings import TrainConfig

Config = Callable[..., TrainConfig]


def write_a_little(config: TrainConfig, step: int = 0) -> RunFolder:
    folder = RunFolder(config.save_ckpt_path)
    log = RunLog(config, folder, step)
    log.metrics({"train/loss": 0.5}, step + 1)
    log.metrics({"validation/loss": 0.25}, step + 2)
    log.grid(Image.new("RGB", (8, 4)), folder.grid(step + 2), step + 2)
    log.close()
    return folder


def test_csv(config: Config) -> None:
    folder = write_a_little(config(logger="csv"))
    (path,) = folder.logs.rglob("metrics.csv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert rows == [
        {"step": "1", "train/loss": "0.5", "validation/loss": ""},
        {"step": "2", "train/loss": "", "validation/loss": "0.25"},
    ]


def test_tensorboard_drops_what_a_killed_run_wrote_of_later_steps(config: Config) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    chosen = config(logger="tensorboard")
    write_a_little(chosen)
    folder = write_a_little(chosen, step=1)
    events = EventAccumulator(str(folder.logs), {"images": 0, "scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert [event.step for event in events.Scalars("validation/loss")] == [3]
    assert [event.step for event in events.Images("validation/pictures")] == [3]


@pytest.mark.parametrize(
    ("logger", "writes"),
    [
        ("csv", "lightning.fabric.loggers.csv_logs._ExperimentWriter.save"),
        ("tensorboard", "torch.utils.tensorboard.SummaryWriter.add_scalar"),
    ],
)
def test_a_log_whose_disk_fails_is_named(
    config: Config, monkeypatch: pytest.MonkeyPatch, logger: str, writes: str
) -> None:
    chosen = config(logger=logger)
    log = RunLog(chosen, RunFolder(chosen.save_ckpt_path), 0)

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writes, failing)
    with pytest.raises(OutputError, match=r"logs.* cannot be written: No space left on device\."):
        log.metrics({"loss": 1.0}, 1)


def test_wandb_must_be_installed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    check_logger("csv")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="logger wandb needs the package wandb, which is not installed: pip"):
        check_logger("wandb")
