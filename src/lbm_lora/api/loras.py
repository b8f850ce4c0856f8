"""LoRAs from two checkpoints, or from a tuned one alone: extract, extract_several, compress. LoRAs at other ranks:
resize, resize_several."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.api.adapters import MeasuredAdapter, ResizedAdapter, contents
from lbm_lora.api.models import calibrate
from lbm_lora.api.options import Options
from lbm_lora.api.values import Images, LoraLike, adapter_of, image_files, opened_pair, path_of
from lbm_lora.checkpoint import Checkpoint, CheckpointLike, open_checkpoint
from lbm_lora.combine import Resized
from lbm_lora.configs.compress import CompressConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.resize import ResizeConfig
from lbm_lora.errors import ConfigError, Option, give_one
from lbm_lora.extraction import ExtractedAdapter
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import RankRule
from lbm_lora.report import file_labels, weight_report
from lbm_lora.workflows import extract as extract_workflow
from lbm_lora.workflows import resize as resize_workflow

if TYPE_CHECKING:
    from lbm_lora.calibration import Statistics
    from lbm_lora.workflows.compress import CompressResult

_EXTRACT = Options(
    ExtractConfig,
    hidden=(
        *("base_model_path", "tuned_model_path", "save_to", "calibration", "calibration_images", "images"),
        *("create_base_model", "backbone_signature"),  # make_base makes a base
        "also",  # an adapter saves itself in any format
    ),
)
_COMPRESS = Options(CompressConfig, hidden=("tuned", "images"))
_RESIZE = Options(ResizeConfig, hidden=("lora_path", "save_to", "calibration", "base_model_path", "images"))


@_EXTRACT.documented
def extract(
    base: CheckpointLike,
    tuned: CheckpointLike,
    *,
    save_to: Path | str | None = None,
    calibration: "Path | str | Statistics | None" = None,
    calibration_images: Images | None = None,
    images: Images | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> MeasuredAdapter:
    """Extract a LoRA: the change of a fine-tune, matrices as low-rank factors, biases and norms dense.

    Args:
        base: the checkpoint that the tuned one started from: a path, an open checkpoint or a state dict.
        tuned: the fine-tuned checkpoint, likewise.
        save_to: also write the LoRA, a .safetensors file, and its sidecar while it is extracted: the bytes of
            `lbm-lora extract`. Its tensors then stay in the file, which takes less memory. None: nothing is written.
        calibration: statistics of the tuned model, from `calibrate` or its file: least error of the model's output
            instead of the weights.
        calibration_images: images to make those statistics of first; they are not kept.
        images: images to run a calibrated LoRA on: their PSNR to the tuned model's one-step images.
        progress: a listener.

    Returns:
        The LoRA, with its `report`.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    (found,) = _extracted("extract", base, tuned, save_to, calibration, calibration_images, images, progress, options)
    return found


@_EXTRACT.documented
def extract_several(
    base: CheckpointLike,
    tuned: CheckpointLike,
    *,
    save_to: Path | str | None = None,
    calibration: "Path | str | Statistics | None" = None,
    calibration_images: Images | None = None,
    images: Images | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> list[MeasuredAdapter]:
    """Extract several LoRAs in one pass: one for each of `ranks`, or of the sizes in `max_size`.

    Args:
        base, tuned, save_to, calibration, calibration_images, images, progress: see `extract`.

    Returns:
        The LoRAs in the order of their ranks or sizes.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    return _extracted(
        "extract_several", base, tuned, save_to, calibration, calibration_images, images, progress, options
    )


def _extracted(
    function: str,
    base: CheckpointLike,
    tuned: CheckpointLike,
    save_to: Path | str | None,
    calibration: "Path | str | Statistics | None",
    calibration_images: Images | None,
    images: Images | None,
    progress: Progress,
    options: Mapping[str, Any],
) -> list[MeasuredAdapter]:
    """Extract between values, by the path of the workflow."""
    if calibration is not None and calibration_images is not None:
        raise give_one("calibration", "calibration_images", "weight the errors")
    tried = calibration_images if images is None and options.get("min_psnr") is not None else images
    with ExitStack() as stack:
        opened = opened_pair(stack, base, tuned)
        sources = None if tried is None else stack.enter_context(image_files(tried))
        config = _EXTRACT.bind(
            function,
            options,
            base_model_path=opened[0].path,
            tuned_model_path=opened[1].path,
            save_to=Path(save_to or "LoRA.safetensors"),
            calibration=_label(calibration, calibration_images),
            images=None if sources is None else str(sources),
        )
        rule, settings = extract_workflow.check(config)
        if function == "extract" and len(rule.names) > 1:
            raise ConfigError(
                Option(rule.option), f" asks for {len(rule.names)} LoRAs, extract gives one. Call extract_several."
            )
        paths = [None] * len(rule.names) if save_to is None else extract_workflow.output_paths(config, rule)
        found = extract_workflow.extracted(
            config,
            rule,
            settings,
            *opened,
            paths,
            statistics=_statistics(config, opened[1], calibration, calibration_images, progress),
            images=extract_workflow.readable(sources),
            progress=progress,
        )
    labels = file_labels(opened[0].path, opened[1].path)
    return [_measured(config, path, one, labels) for path, one in zip(paths, found, strict=True)]


def _label(calibration: "Path | str | Statistics | None", calibration_images: Images | None) -> Path | None:
    """Return the name of the statistics in messages and metadata."""
    if isinstance(calibration, str | Path):
        return Path(calibration)
    return None if calibration is None and calibration_images is None else Path("statistics")


def _statistics(
    config: ExtractConfig,
    tuned: Checkpoint,
    calibration: "Path | str | Statistics | None",
    calibration_images: Images | None,
    progress: Progress,
) -> "Callable[[], Statistics]":
    """Gives the statistics when they are needed: once it is clear that the two checkpoints fit."""

    def statistics() -> "Statistics":
        if calibration_images is not None:
            return calibrate(
                tuned, calibration_images, device=config.device, config_path=config.config_path, progress=progress
            )
        return _loaded(calibration)

    return statistics


def _measured(
    config: ExtractConfig, path: Path | None, found: ExtractedAdapter, labels: tuple[str, str]
) -> MeasuredAdapter:
    if path is not None:
        report = extract_workflow.written(config, path, found, labels).report
    else:
        report = weight_report(
            found.ledger,
            base=labels[0],
            tuned=labels[1],
            adapter="LoRA",
            made_for_output=config.statistics is not None,
        )
    adapter = found.adapter if path is None else load_adapter(path)
    assert adapter is not None
    return MeasuredAdapter(
        **contents(adapter),
        report=report,
        predicted=found.predicted,
        trial=found.chosen.images if found.chosen else None,
        sizes=found.sizes,
    )


@_RESIZE.documented
def resize(
    lora: LoraLike,
    *,
    save_to: Path | str | None = None,
    base: CheckpointLike | None = None,
    calibration: "Path | str | Statistics | None" = None,
    images: Images | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> ResizedAdapter:
    """Give a LoRA other ranks, from its factors alone: the best approximation of what it was.

    Args:
        lora: the LoRA: a path, or an adapter. It is not changed.
        save_to: also write the LoRA, a .safetensors file: the bytes of `lbm-lora resize`. None: nothing is written.
        base: its base, to run resized LoRAs on `images` and at the check points of the calibration.
        calibration: statistics of the tuned model, from `calibrate` or its file: least error of the model's output
            instead of the weights.
        images: images to run resized LoRAs on: their PSNR to the one-step images of the LoRA as it was.
        progress: a listener.

    Returns:
        The LoRA, with its error against the given one.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    (found,) = _resized("resize", lora, save_to, base, calibration, images, progress, options)
    return found


@_RESIZE.documented
def resize_several(
    lora: LoraLike,
    *,
    save_to: Path | str | None = None,
    base: CheckpointLike | None = None,
    calibration: "Path | str | Statistics | None" = None,
    images: Images | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> list[ResizedAdapter]:
    """Resize a LoRA several times at once: for each of `ranks`, or of the sizes in `max_size`.

    Args:
        lora, save_to, base, calibration, images, progress: see `resize`.

    Returns:
        The LoRAs in the order of their ranks or sizes.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    return _resized("resize_several", lora, save_to, base, calibration, images, progress, options)


def _resized(
    function: str,
    lora: LoraLike,
    save_to: Path | str | None,
    base: CheckpointLike | None,
    calibration: "Path | str | Statistics | None",
    images: Images | None,
    progress: Progress,
    options: Mapping[str, Any],
) -> list[ResizedAdapter]:
    """Resize between values, by the path of the workflow."""
    with ExitStack() as stack:
        opened = None if base is None else stack.enter_context(open_checkpoint(base, label="base state dict"))
        sources = None if images is None else stack.enter_context(image_files(images))
        config = _RESIZE.bind(
            function,
            options,
            lora_path=path_of(lora, "LoRA"),
            save_to=Path(save_to or "LoRA.safetensors"),
            base_model_path=None if opened is None else opened.path,
            calibration=_label(calibration, None),
            images=None if sources is None else str(sources),
        )
        rule = resize_workflow.check(config)
        if function == "resize" and len(rule.names) > 1:
            raise ConfigError(
                Option(rule.option), f" asks for {len(rule.names)} LoRAs, resize gives one. Call resize_several."
            )
        paths = [None] * len(rule.names) if save_to is None else resize_workflow.output_paths(config, rule)
        component = None if opened is None else opened.component()
        adapter = adapter_of(lora, config.lora_alpha_is, base=component)
        found = resize_workflow.resized(
            config,
            rule,
            adapter,
            paths,
            statistics=lambda: _loaded(calibration),
            base=opened,
            images=extract_workflow.readable(sources),
            progress=progress,
        )
    return [_with_error(adapter, rule, path, one) for path, one in zip(paths, found, strict=True)]


def _loaded(calibration: "Path | str | Statistics | None") -> "Statistics":
    from lbm_lora.calibration import load_statistics  # only this needs the network classes

    assert calibration is not None
    return load_statistics(Path(calibration)) if isinstance(calibration, str | Path) else calibration


def _with_error(adapter: Adapter, rule: RankRule, path: Path | None, found: Resized) -> ResizedAdapter:
    made = found.adapter if path is None else load_adapter(path)
    assert made is not None
    return ResizedAdapter(
        **contents(made),
        resize_error=found.ledger.total().relative_error,
        left_out=resize_workflow.names_left_out(found),
        predicted=found.predicted,
        trial=found.chosen.images,
        sizes=found.sizes,
        notes=resize_workflow.notes(adapter, rule, found),
    )


@_COMPRESS.documented
def compress(
    tuned: Path | str, *, images: Images | None = None, progress: Progress = SILENT, **options: Any
) -> "CompressResult":
    """Make a small LoRA of a fine-tuned model in one step: base, calibration, extraction, and comparison in images.

    All of it is written to the folder `output`: the LoRA, the base, the statistics and the report.

    Args:
        tuned: the fine-tuned checkpoint, or the folder that holds it with its config.yaml.
        images: sources of the kind that the model is used on. Every fourth one is held out to measure on, 8 at most.
            None: the four photos that come with the package.
        progress: a listener.

    Returns:
        The LoRA, how close it comes to the tuned model, and where everything lies.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    from lbm_lora.workflows.compress import run

    with ExitStack() as stack:
        sources = () if images is None else stack.enter_context(image_files(images))
        texts = (sources,) if isinstance(sources, str) else sources
        return run(_COMPRESS.bind("compress", options, tuned=Path(tuned), images=texts), progress)
