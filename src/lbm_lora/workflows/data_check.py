"""Read a complete data set: the verb `data check`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lbm_lora.configs.data_check import CheckConfig
from lbm_lora.errors import Option, QualityError
from lbm_lora.missing_path import home_path
from lbm_lora.progress import SILENT, Progress
from lbm_lora.training.data.check import Checked, read_through
from lbm_lora.training.data.dataset import Split, open_data
from lbm_lora.training.data.pairs import SHARD_NAMES
from lbm_lora.training.settings.data_keys import DataSettings
from lbm_lora.training.settings.train_config import read_train_config
from lbm_lora.training.settings.training_file import COMMAND_LINE, parse


@dataclass(frozen=True, kw_only=True)
class CheckedSplit:
    """Findings in one split of the data."""

    split: Split
    found: Checked


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Findings in all splits of the data."""

    splits: tuple[CheckedSplit, ...]
    failures: tuple[QualityError, ...]
    """Splits with too many corrupt samples."""


def run(config: CheckConfig, progress: Progress = SILENT) -> CheckResult:
    """Read a data set completely.

    Raises:
        ConfigError: a setting is invalid.
        DataError: the data cannot be read, or have no usable samples.
    """
    settings, batch_size = _settings(config)
    names: list[Split] = ["train", "validation"] if settings.has_validation else ["train"]
    counting = settings.model_copy(update={"max_corrupt": 1.0})
    splits: list[CheckedSplit] = []
    for name in names:
        dataset = open_data(counting, name, seed=0, progress=progress)
        found = read_through(
            dataset,
            batch_size=batch_size,
            cover=name == "validation",
            num_workers=config.num_workers,
            progress=progress,
        )
        splits.append(CheckedSplit(split=name, found=found))
    return CheckResult(splits=tuple(splits), failures=tuple(_failures(splits, settings.max_corrupt)))


def _settings(config: CheckConfig) -> tuple[DataSettings, int]:
    """Return the settings of the data, and the batch size."""
    if config.path_config is not None:
        training = read_train_config(config.path_config)
        return training, training.batch_size
    names = ("source_key", "target_key", "mask_key", "image_size", "cache_dir", "allow_pipe", "max_corrupt")
    values = _place(config.data) | {name: getattr(config, name) for name in names}
    return parse(DataSettings, values, where=COMMAND_LINE), config.batch_size


def _place(data: Sequence[str]) -> dict[str, object]:
    """Return the key of a training file for the location of the data, and its value."""
    folder = home_path(data[0])
    if len(data) > 1 or not folder.is_dir():
        return {"train_shards": tuple(data)}
    shards = sorted(str(path) for path in folder.iterdir() if path.name.endswith(SHARD_NAMES))
    return {"train_shards": tuple(shards)} if shards else {"train_folder": str(folder)}


def _failures(splits: Sequence[CheckedSplit], max_corrupt: float) -> Iterator[QualityError]:
    for split in splits:
        share = split.found.corrupt_share
        if share > max_corrupt:
            yield QualityError(
                f"{split.found.where}: {100 * share:.1f} % of the samples cannot be used, more than the "
                f"{100 * max_corrupt:g} % of ",
                Option("max_corrupt"),
                ".",
            )
