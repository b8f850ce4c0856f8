"""Training, and the data that it takes: train, pack_data, check_data."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbm_lora.api.options import Options
from lbm_lora.progress import SILENT, Progress
from lbm_lora.training.settings import TrainConfig, train_config
from lbm_lora.training.training_file import read_values

if TYPE_CHECKING:
    from lbm_lora.workflows.train import TrainResult

_TRAIN = Options(TrainConfig)


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
