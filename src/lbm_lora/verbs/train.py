"""Train a LoRA, new or continued, or the full denoiser, by a training file: the verb `train`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lbm_lora.errors import ConfigError, Option, listing, need_packages
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import HIDDEN, Also, CommandDefault, Overwrite, TrainingFile
from lbm_lora.verbs.verb import EVERYDAY, verb

if TYPE_CHECKING:
    from lbm_lora.adapter.twins import Twin
    from lbm_lora.choices import ForeignFormat
    from lbm_lora.training.settings import TrainConfig
    from lbm_lora.training.validation import Scores


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
    twins: "tuple[Twin, ...]" = ()
    """The last and the best LoRA in other formats, once the run is complete."""


def _text(result: TrainResult, _: bool) -> str:
    """Return the progress of the run, its last validation, and its files."""
    from lbm_lora.verbs.lines import file_lines, paragraphs, twin_files

    files = [path for path in (result.last, result.best) if path is not None]
    is_new = bool(result.stopped_by) or not math.isnan(result.loss)  # nan: the run was complete, no step was left
    if result.stopped_by:
        head = (
            f"Stopped by {result.stopped_by} after step {result.step:,} of {result.total:,}, and saved. "
            "Run the same command to resume."
        )
    elif is_new:
        head = (
            f"Trained {result.step:,} of {result.total:,} steps, {result.learning:,} parameters, "
            f"last loss {result.loss:.5f}, {result.seconds:,.0f} s."
        )
    else:
        steps = (
            f"All {result.total:,} steps had been trained before"
            if result.step <= result.total
            else f"{result.step:,} steps had been trained before, more than the {result.total:,} asked for"
        )
        head = f"{steps}: {listing(map(str, files or [result.folder]))}."
    best = f"{result.best} is of step {result.best_step:,}." if result.best and result.best_step is not None else ""
    made = [*(files if is_new else ()), *twin_files(result.twins)]
    return paragraphs(head, _scores(result.scores), file_lines(*made), best)


def _scores(scores: "Scores | None") -> str:
    from lbm_lora.report.wording import plural

    if scores is None:
        return ""
    losses = ", ".join(f"{loss:.5f} at {timestep:g}" for timestep, loss in scores.losses.items())
    lines = [f"Validation of {plural(scores.samples, 'pair')}: loss {scores.loss:.5f} ({losses})"]
    for steps, made in scores.images.items():
        lpips = "" if made.lpips is None else f", LPIPS {made.lpips:.4f}"
        lines.append(f"  steps {steps}: PSNR {made.psnr:.2f} dB, SSIM {made.ssim:.4f}{lpips}")
    return "\n".join(lines)


@verb(
    "train a LoRA, new or continued, or the full denoiser",
    group=EVERYDAY,
    examples=(
        "lbm-lora train --path_config train.yaml",
        "lbm-lora train --path_config train.yaml --learning_rate 5e-5 --max_steps 2000 --num_steps 1 4",
    ),
    text=_text,
)
def train(
    config: TrainingFile = None,
    *,
    overwrite: Overwrite = False,
    also: Also = (),
    is_typed: Annotated[bool, HIDDEN, CommandDefault(True)] = False,
    progress: Progress = SILENT,
    **keys: Any,
) -> tuple[TrainResult, TrainResult]:
    """Train as a YAML file says. Every key of the file can also be given here and takes precedence: --learning_rate
    1e-4. A key that takes a mapping is set key by key: --rank_pattern.ff.net 8.

    Args:
        config: The training file. lora/lora_relight_config.yaml in the repository is an example.
        also: Also write the last and the best LoRA in these formats, next to the native files:
            last.comfyui.safetensors, and so on. What a format cannot hold is left out there, with a warning.
        is_typed: Errors name the command line as the place of the keys.
        keys: Keys of the training file, which may also be a mapping or left out: see
            `lbm_lora.training.settings.TrainConfig`.

    Returns:
        The outcome of the run, and its files, which are in `save_ckpt_path`.

    Raises:
        ConfigError: the training file, or a key; before anything else is read.
        MissingExtraError: a package of the train extra is not installed.
        InputError: invalid input of any kind; see `lbm_lora.errors`.
        QualityError: the loss is no longer finite.
    """
    from lbm_lora.training.settings import read_train_config
    from lbm_lora.verbs.values import several

    settings = read_train_config(config, keys, is_typed=is_typed)
    file = Path(config) if isinstance(config, str | Path) else None
    if file is not None and "save_ckpt_path" not in keys:
        _check_home(file, settings)
    formats: tuple[ForeignFormat, ...] = several(also)
    if formats and settings.mode == "full":
        raise ConfigError(Option("also"), " is for LoRAs, but mode full trains a checkpoint.")
    need_packages("training", ("lightning", "peft"), "train")
    from lbm_lora.adapter.twins import write_twins
    from lbm_lora.model.make_base import ensure_base
    from lbm_lora.training.fit import fit

    settings = _local(settings, progress)
    base = settings.base_model_path or settings.save_ckpt_path / "base.safetensors"
    _check_outputs(settings, base, file, formats, overwrite)
    base = ensure_base(
        base,
        backbone_signature=settings.backbone_signature,
        config_path=settings.config_path,
        overwrite=overwrite,
        progress=progress,
    )
    fitted = fit(settings, base, progress, path_config=file)
    folder, standing = fitted.folder, fitted.standing
    result = TrainResult(
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
    if not result.process and not result.stopped_by:
        loras = [path for path in (result.last, result.best) if path]
        twins = tuple(twin for lora in loras for twin in write_twins(lora, formats, progress))
        result = replace(result, twins=twins)
    return result, result


def _check_home(file: Path, settings: "TrainConfig") -> None:
    """Refuse the training file of a run's folder that was copied or moved, and still names the first folder."""
    from lbm_lora.files import is_same
    from lbm_lora.training.settings import RUN_LINE, STATE_NAME

    is_at_home = is_same(file.parent, settings.save_ckpt_path) or not (file.parent / STATE_NAME).exists()
    if not is_at_home and file.is_file() and RUN_LINE in file.read_text(errors="replace"):
        raise ConfigError(
            f"{file} is in the folder of a run, but its save_ckpt_path is {settings.save_ckpt_path}: the folder was "
            "copied or moved. Add ",
            Option("save_ckpt_path", str(file.parent)),
            " to go on with the run in it, or name another folder.",
        )


def _local(settings: "TrainConfig", progress: Progress) -> "TrainConfig":
    """Return settings with local files in the place of names on the hub; a base that is made is none."""
    from lbm_lora.hub import local_checkpoint, local_lora

    changed: dict[str, Path] = {}
    if settings.base_model_path and settings.backbone_signature is None:
        changed["base_model_path"] = local_checkpoint(settings.base_model_path, progress)
    if settings.lora_weights_path:
        changed["lora_weights_path"] = local_lora(settings.lora_weights_path, progress)
    return settings.model_copy(update=changed)


def _check_outputs(
    settings: "TrainConfig", base: Path, file: Path | None, also: "Sequence[ForeignFormat]", overwrite: bool
) -> None:
    """Check what the run writes: results of the same run may be replaced. No output has the name of a shard."""
    from lbm_lora.adapter.twins import plan_twins
    from lbm_lora.files import Outputs, check_writable, is_same
    from lbm_lora.training.checkpoint import RunFolder

    folder = RunFolder(settings.save_ckpt_path)
    goes_on = folder.state.exists() and settings.resume != "never"
    outputs = Outputs(overwrite=overwrite, replaces_trained=goes_on)
    outputs.reads(base, settings.lora_weights_path, settings.config_path, settings.lpips_weights, file)
    outputs.reads(*_images(settings))
    if settings.resume not in ("auto", "never") and not is_same(Path(settings.resume), folder.state):
        outputs.reads(settings.resume)
    ends = [folder.last, *([folder.best] if settings.has_validation else [])]
    written = [*ends, *folder.step_files().values(), *folder.grids()]
    written += [] if goes_on else [folder.state]
    written += [] if file and is_same(file, folder.config) else [folder.config]
    written += [base] if settings.backbone_signature and not base.exists() else []
    for path in written:
        outputs.writes(path, "the run's file")
    plan_twins(outputs, ends, also)
    outputs.check()
    if settings.has_validation:
        check_writable(folder.grid(0), "a picture of the run")
    if settings.logger in ("csv", "tensorboard"):
        check_writable(folder.logs / "a log", "a log of the run")


def _images(settings: "TrainConfig") -> Iterator[Path]:
    from lbm_lora.training.data.pairs import Keys, find_pairs

    keys = Keys(source=settings.source_key, target=settings.target_key, mask=settings.mask_key)
    for folder in (settings.train_folder, settings.validation_folder):
        for found in find_pairs(folder, keys) if folder else ():
            yield from (part.path for part in found.parts.values())
