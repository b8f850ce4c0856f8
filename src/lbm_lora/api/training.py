"""Training, and the data that it takes: train, pack_data, check_data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbm_lora.api.options import Options
from lbm_lora.configs.data_check import CheckConfig
from lbm_lora.configs.data_pack import PackConfig
from lbm_lora.progress import SILENT, Progress
from lbm_lora.training.settings.train_config import TrainConfig, train_config
from lbm_lora.training.settings.training_file import read_values

if TYPE_CHECKING:
    from lbm_lora.workflows.data_check import CheckResult
    from lbm_lora.workflows.data_pack import PackResult
    from lbm_lora.workflows.train import TrainResult

_TRAIN = Options(TrainConfig)
_PACK = Options(PackConfig, hidden=("folder", "to"))
_CHECK = Options(CheckConfig, hidden=("data", "path_config"))


@_TRAIN.documented
def train(
    config: Path | str | Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
    **options: Any,
) -> "TrainResult":
    """Train a LoRA, new or continued, or the full denoiser. The run's files are in `save_ckpt_path`.

    Args:
        config: a training file, or its keys and values. None: the options alone.
        overwrite: replace files in the run's folder that lbm-lora did not write.
        progress: a listener.

    Returns:
        The outcome of the run, and its files.

    Raises:
        ConfigError: the training file, or an option; before anything else is read.
        MissingExtraError: a package of the train extra is not installed.
        InputError: invalid input of any kind; see `lbm_lora.errors`.
        QualityError: the loss is not finite any more.
    """
    from lbm_lora.workflows.train import check_home, trained

    _TRAIN.check_names("train", options)
    file = Path(config) if isinstance(config, str | Path) else None
    given = read_values(Path(config)) if isinstance(config, str | Path) else config or {}
    settings = train_config({**given, **_TRAIN.plain(options)}, where="train" if file is None else str(file))
    if file is not None:
        check_home(file, settings, options)
    return trained(settings, progress, path_config=file, overwrite=overwrite)


@_PACK.documented
def pack_data(folder: Path | str, to: Path | str, *, progress: Progress = SILENT, **options: Any) -> "PackResult":
    """Make WebDataset shards of a folder of pairs; files are copied byte for byte.

    Args:
        folder: holds NAME.source.png, NAME.target.png, or folders source/ and target/ with equal names; any image
            format.
        to: folder for the shards; a new or an empty one.
        progress: a listener.

    Returns:
        The shards, and the pairs that were left out.

    Raises:
        ConfigError: a limit below 1.
        DataError: the folder holds no pairs, too many of them are corrupt, or two names become the same.
        OutputError: the folder for the shards is not empty, or cannot be written.
    """
    from lbm_lora.workflows.data_pack import run

    return run(_PACK.bind("pack_data", options, folder=Path(folder), to=Path(to)), progress)


@_CHECK.documented
def check_data(
    data: Path | str | Sequence[Path | str], *, progress: Progress = SILENT, **options: Any
) -> "CheckResult":
    """Read a complete data set, every pixel of it, and report.

    Args:
        data: a folder of pairs, or shards: paths, URLs, patterns with {000..009}. A .yaml file is a training file: its
            data are checked, with its keys and sizes.
        progress: a listener.

    Returns:
        The findings; `failures` are the splits with too many corrupt samples.

    Raises:
        ConfigError: a setting that cannot be.
        DataError: the data cannot be read, or hold nothing that could be used.
    """
    from lbm_lora.workflows.data_check import run

    listed = [data] if isinstance(data, str | Path) else list(data)
    is_file = len(listed) == 1 and str(listed[0]).endswith((".yaml", ".yml"))
    place = {"path_config": Path(listed[0])} if is_file else {"data": tuple(map(str, listed))}
    return run(_CHECK.bind("check_data", options, **place), progress)
