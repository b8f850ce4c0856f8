"""Train a LoRA, new or continued, or the full denoiser, by a training file: the verb `train`."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.adapter.adapter_file import files_of
from lbm_lora.adapter.twins import Twin, twin_path, write_twins
from lbm_lora.configs.train import TrainRunConfig
from lbm_lora.configs.values import ForeignFormat
from lbm_lora.errors import ConfigError, Option, need_packages
from lbm_lora.files import Outputs, check_writable, is_same, is_trained
from lbm_lora.hub import localized
from lbm_lora.progress import SILENT, Progress
from lbm_lora.training.settings import RUN_LINE, STATE_NAME, TrainConfig, read_train_config

if TYPE_CHECKING:
    from lbm_lora.training.fit import FitResult
    from lbm_lora.training.validation import Scores

_PACKAGES = ("lightning", "peft")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Outcome of the run, and its files."""

    folder: Path
    last: Path | None
    """The newest LoRA (mode full: checkpoint); None if the run was stopped before its first step."""
    best: Path | None
    """The best by the chosen metric; None without validation pairs."""
    step: int
    """Completed optimizer steps, including those before a stop."""
    total: int
    learning: int
    """Number of trainable parameters."""
    loss: float
    """Mean loss of the last logged steps."""
    scores: "Scores | None"
    """Scores of the last validation."""
    best_step: int | None
    """Step of `best`."""
    stopped_by: str
    """The signal that stopped the run early, else empty."""
    seconds: float
    process: int
    """Number of this process; process 0 reports for all."""
    twins: tuple[Twin, ...] = ()
    """The last and the best LoRA in other formats, once the run is complete."""


def run(config: TrainRunConfig, progress: Progress = SILENT) -> TrainResult:
    """Train as the training file says.

    Raises:
        ConfigError: the training file, or an override; before anything else is read.
        MissingExtraError: a package of the train extra is not installed.
        InputError: invalid input of any kind; see `lbm_lora.errors`.
        QualityError: the loss is no longer finite.
    """
    settings = read_train_config(config.path_config, config.overrides)
    names = {key.replace("-", "_") for key, _ in config.overrides}
    check_home(config.path_config, settings, names)
    if config.also and settings.mode == "full":
        raise ConfigError(Option("also"), " is for LoRAs, but mode full trains a checkpoint.")
    result = trained(settings, progress, path_config=config.path_config, also=config.also, overwrite=config.overwrite)
    loras = [] if result.process else [path for path in (result.last, result.best) if path]
    also = () if result.stopped_by else config.also
    twins = [twin for lora in loras for twin in write_twins(lora, also, progress)]
    return replace(result, twins=tuple(twins))


def check_home(path: Path, settings: TrainConfig, given: Container[str]) -> None:
    """Refuse the training file of a run's folder that was copied or moved, and still names the first folder.

    Args:
        given: keys that are given besides the file.

    Raises:
        ConfigError: it is one, and no folder is given.
    """
    if "save_ckpt_path" in given or is_same(path.parent, settings.save_ckpt_path):
        return
    if (path.parent / STATE_NAME).exists() and path.is_file() and RUN_LINE in path.read_text(errors="replace"):
        raise ConfigError(
            f"{path} is in the folder of a run, but its save_ckpt_path is {settings.save_ckpt_path}: the folder was "
            "copied or moved. Add ",
            Option("save_ckpt_path", str(path.parent)),
            " to go on with the run in it, or name another folder.",
        )


def trained(
    settings: TrainConfig,
    progress: Progress,
    *,
    path_config: Path | None = None,
    also: Sequence[ForeignFormat] = (),
    overwrite: bool = False,
) -> TrainResult:
    """Train as settings say; see `run`.

    Args:
        path_config: the training file that they are from.
        also: formats that the result will be written in too.
        overwrite: whether files in the run's folder that are not ours may be replaced.
    """
    need_packages("training", _PACKAGES, "train")
    from lbm_lora.training.fit import fit

    settings = localized(settings, progress)
    _check_outputs(settings, path_config, also, overwrite=overwrite)
    base = _base(settings, progress, overwrite=overwrite)
    return _result(fit(settings, base, progress, path_config=path_config), settings)


def _check_outputs(
    settings: TrainConfig, path_config: Path | None, also: Sequence[ForeignFormat], *, overwrite: bool
) -> None:
    """Check what the run writes: it replaces its own results, while those of another training need `overwrite`.

    Shards are no inputs here: no output has such a name.
    """
    from lbm_lora.training.checkpoint import RunFolder

    folder, base = RunFolder(settings.save_ckpt_path), base_path(settings)
    ends = [folder.last, *([folder.best] if settings.has_validation else [])]
    twins = [file for lora in ends for to in also for file in files_of(twin_path(lora, to), to)]
    results = [*ends, *folder.step_files().values(), *twins]
    goes_on = folder.state.exists() and settings.resume != "never"
    own = [path for path in results if goes_on and is_trained(path)]
    others = [path for path in results if path not in own]
    own += [folder.state] if goes_on else []
    others += [] if goes_on else [folder.state]
    others += [] if path_config and is_same(path_config, folder.config) else [folder.config]
    others += folder.grids()
    others += [base] if settings.backbone_signature and not base.exists() else []
    for paths, may_replace in ((own, True), (others, overwrite)):
        outputs = Outputs(overwrite=may_replace)
        outputs.reads(base, settings.lora_weights_path, settings.config_path, settings.lpips_weights, path_config)
        outputs.reads(*_images(settings))
        if settings.resume not in ("auto", "never") and not is_same(Path(settings.resume), folder.state):
            outputs.reads(settings.resume)
        for path in paths:
            outputs.writes(path, "the run's file")
        outputs.check()
    if settings.has_validation:
        check_writable(folder.grid(0), "a picture of the run")
    if settings.logger in ("csv", "tensorboard"):
        check_writable(folder.logs / "a log", "a log of the run")


def _images(settings: TrainConfig) -> Iterator[Path]:
    from lbm_lora.training.data.pairs import Keys, find_pairs

    keys = Keys(source=settings.source_key, target=settings.target_key, mask=settings.mask_key)
    for folder in (settings.train_folder, settings.validation_folder):
        for found in find_pairs(folder, keys) if folder else ():
            yield from (part.path for part in found.parts.values())


def base_path(settings: TrainConfig) -> Path:
    """Return the path of the base, which is made if it is missing: by default in the run's folder."""
    return settings.base_model_path or settings.save_ckpt_path / "base.safetensors"


def _base(settings: TrainConfig, progress: Progress, *, overwrite: bool) -> Path:
    """Return the existing base, or make it from the backbone."""
    from lbm_lora.model.make_base import ensure_base

    return ensure_base(
        base_path(settings),
        backbone_signature=settings.backbone_signature,
        config_path=settings.config_path,
        overwrite=overwrite,
        progress=progress,
    )


def _result(fitted: "FitResult", settings: TrainConfig) -> TrainResult:
    folder, standing = fitted.folder, fitted.standing
    return TrainResult(
        folder=folder.path,
        last=folder.last if folder.last.exists() else None,
        best=folder.best if settings.has_validation and folder.best.exists() else None,
        step=standing.step,
        total=fitted.total,
        learning=fitted.learning,
        loss=standing.loss,
        scores=standing.scores,
        best_step=None if standing.best is None else standing.best_step,
        stopped_by=standing.stopped_by,
        seconds=fitted.seconds,
        process=fitted.process,
    )
