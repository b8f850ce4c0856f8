"""LoRAs from two checkpoints, or from a tuned one alone: extract, extract_several, compress."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lbm_lora.adapter import load_adapter
from lbm_lora.api.adapters import MeasuredAdapter, contents
from lbm_lora.api.models import calibrate
from lbm_lora.api.options import FOR_ONE, Options
from lbm_lora.checkpoint import Checkpoint
from lbm_lora.configs.compress import CompressConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.errors import ConfigError, Option, give_one
from lbm_lora.extraction import ExtractedAdapter
from lbm_lora.fidelity.weights import WeightReport, file_labels, weight_report
from lbm_lora.files import together
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.values import Images, NetworkLike, image_files, label_of, opened_pair, statistics_of
from lbm_lora.workflows import extract as extract_workflow
from lbm_lora.workflows.sources import checked_image_paths, image_paths

if TYPE_CHECKING:
    from lbm_lora.calibration import Statistics
    from lbm_lora.fidelity.network import Network, Run
    from lbm_lora.workflows.compress import CompressResult

_OWN = (
    *("base_model_path", "tuned_model_path", "save_to", "calibration", "calibration_images", "images"),
    *("create_base_model", "backbone_signature"),  # make_base makes a base
    "also",  # an adapter saves itself in any format
)
_EXTRACT = Options(ExtractConfig, hidden=_OWN)
_EXTRACT_ONE = Options(ExtractConfig, hidden=(*_OWN, "ranks"), texts=FOR_ONE)
_COMPRESS = Options(CompressConfig, hidden=("tuned", "images"))


@_EXTRACT_ONE.documented
def extract(
    base: NetworkLike,
    tuned: NetworkLike,
    *,
    save_to: Path | str | None = None,
    calibration: "Path | str | Statistics | None" = None,
    calibration_images: Images | None = None,
    images: Images | None = None,
    run: "Run | None" = None,
    progress: Progress = SILENT,
    **options: Any,
) -> MeasuredAdapter:
    """Extract a LoRA: the change of a fine-tune, matrices as low-rank factors, biases and norms dense.

    Args:
        base: the checkpoint that the tuned one started from: a path, an open checkpoint, a state dict or a module.
        tuned: the fine-tuned checkpoint, likewise.
        save_to: also write the LoRA, a .safetensors file, and its sidecar while it is extracted: the bytes of
            `lbm-lora extract`. Its tensors then stay in the file, which takes less memory. None: nothing is written.
        calibration: statistics of the tuned model, from `calibrate` or its file: least error of the model's output
            instead of the weights.
        calibration_images: images to make those statistics of first; they are not kept.
        images: images to run a calibrated LoRA on: their PSNR to the tuned model's one-step images.
        run: the callable that `tuned`, a module of any network, was calibrated with: LoRAs are then run on its held-out
            samples. The module's weights are replaced meanwhile, and put back.
        progress: a listener.

    Returns:
        The LoRA, with its `report`.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    (found,) = _extracted(
        "extract", base, tuned, save_to, calibration, calibration_images, images, run, progress, options
    )
    return found


@_EXTRACT.documented
def extract_several(
    base: NetworkLike,
    tuned: NetworkLike,
    *,
    save_to: Path | str | None = None,
    calibration: "Path | str | Statistics | None" = None,
    calibration_images: Images | None = None,
    images: Images | None = None,
    run: "Run | None" = None,
    progress: Progress = SILENT,
    **options: Any,
) -> list[MeasuredAdapter]:
    """Extract several LoRAs in one pass: one for each of `ranks`, or of the sizes in `max_size`.

    Args:
        base, tuned, save_to, calibration, calibration_images, images, run, progress: see `extract`.

    Returns:
        The LoRAs in the order of their ranks or sizes.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    return _extracted(
        "extract_several", base, tuned, save_to, calibration, calibration_images, images, run, progress, options
    )


def _extracted(
    function: str,
    base: NetworkLike,
    tuned: NetworkLike,
    save_to: Path | str | None,
    calibration: "Path | str | Statistics | None",
    calibration_images: Images | None,
    images: Images | None,
    run: "Run | None",
    progress: Progress,
    options: Mapping[str, Any],
) -> list[MeasuredAdapter]:
    """Extract between values, by the path of the workflow."""
    if calibration is not None and calibration_images is not None:
        raise give_one("calibration", "calibration_images", "weight the errors")
    tried = calibration_images if images is None and options.get("min_psnr") is not None else images
    if run is not None and (not isinstance(tuned, nn.Module) or calibration is None):
        raise ConfigError("run needs calibration, and tuned must be the module that it runs.")
    with ExitStack() as stack:
        opened = opened_pair(stack, base, tuned)
        sources = None if tried is None else stack.enter_context(image_files(tried))
        learnt = None if calibration_images is None else stack.enter_context(image_files(calibration_images))
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
        paths = [None] * len(rule.names)
        if save_to is not None:
            paths = extract_workflow.output_paths(config, rule, image_paths(sources))
        labels = file_labels(opened[0].path, opened[1].path)
        plan = extract_workflow.plan_of(config, *opened)
        statistics = _statistics(config, opened[1], calibration, calibration_images, progress)
        with together():
            found = extract_workflow.extracted(
                config,
                rule,
                settings,
                plan,
                paths,
                statistics=statistics,
                images=checked_image_paths(sources),
                refit_images=() if learnt is None else checked_image_paths(learnt),
                progress=progress,
                network=_network(stack, tuned, run),
            )
            reports = [_report(config, path, one, labels) for path, one in zip(paths, found, strict=True)]
    return [_measured(*one) for one in zip(paths, found, reports, strict=True)]


def _network(stack: ExitStack, tuned: NetworkLike, run: "Run | None") -> "Network | None":
    """Return the network to run LoRAs in, which has its own weights again when the stack is left."""
    if run is None or not isinstance(tuned, nn.Module):
        return None
    from lbm_lora.fidelity.network import Network, kept_weights

    stack.enter_context(kept_weights(tuned))
    return Network(tuned, run)


def _label(calibration: "Path | str | Statistics | None", calibration_images: Images | None) -> Path | None:
    """Return the name of the statistics in messages and metadata."""
    return Path("statistics") if calibration_images is not None else label_of(calibration)


def _statistics(
    config: ExtractConfig,
    tuned: Checkpoint,
    calibration: "Path | str | Statistics | None",
    calibration_images: Images | None,
    progress: Progress,
) -> "Statistics | None":
    """Return the statistics that weight the errors, if there are any."""
    if calibration_images is not None:
        return calibrate(
            tuned, calibration_images, device=config.device, config_path=config.config_path, progress=progress
        )
    return None if calibration is None else statistics_of(calibration)


def _report(config: ExtractConfig, path: Path | None, found: ExtractedAdapter, labels: tuple[str, str]) -> WeightReport:
    """Return the report of a LoRA; one with a file gets its sidecar."""
    if path is not None:
        return extract_workflow.finish(config, path, found, labels).report
    return weight_report(
        found.ledger,
        base=labels[0],
        tuned=labels[1],
        adapter="LoRA",
        made_for_output=config.statistics is not None,
    )


def _measured(path: Path | None, found: ExtractedAdapter, report: WeightReport) -> MeasuredAdapter:
    adapter = found.adapter if path is None else load_adapter(path)
    assert adapter is not None
    return MeasuredAdapter(
        **contents(adapter),
        report=report,
        predicted=found.predicted,
        trial=found.chosen.images if found.chosen else None,
        sizes=found.sizes,
        shrinkage=found.shrinkage,
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
