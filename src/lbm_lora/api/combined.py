"""One LoRA of several: merge. A LoRA at other ranks: resize, resize_several."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.api.options import FOR_ONE, Options
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.combine import Resized, merge_rule
from lbm_lora.configs.merge import MergeConfig
from lbm_lora.configs.resize import ResizeConfig
from lbm_lora.errors import ConfigError, Option
from lbm_lora.files import together
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import RankRule
from lbm_lora.verbs.adapters import CombinedAdapter, ResizedAdapter, contents
from lbm_lora.verbs.values import (
    Images,
    LoraLike,
    adapter_of,
    image_files,
    label_of,
    listed,
    opened_base,
    opened_pair,
    path_of,
    statistics_of,
)
from lbm_lora.workflows import merge as merge_workflow
from lbm_lora.workflows import resize as resize_workflow
from lbm_lora.workflows.resize_result import names_left_out, notes
from lbm_lora.workflows.sources import checked_image_paths, image_paths

if TYPE_CHECKING:
    from lbm_lora.calibration import Statistics

_MERGE = Options(
    MergeConfig,
    hidden=("lora_path", "save_to", "calibration", "images", "base_model_path", "tuned_model_path"),
    names={"lora_path": "loras"},
)
_OWN = ("lora_path", "save_to", "calibration", "base_model_path", "images")
_RESIZE = Options(ResizeConfig, hidden=_OWN)
_RESIZE_ONE = Options(ResizeConfig, hidden=(*_OWN, "ranks"), texts=FOR_ONE)


@_MERGE.documented
def merge(
    loras: LoraLike | Sequence[LoraLike],
    *,
    save_to: Path | str | None = None,
    calibration: "Path | str | Statistics | None" = None,
    images: Images | None = None,
    base: CheckpointLike | None = None,
    tuned: CheckpointLike | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> CombinedAdapter:
    """Merge LoRAs into one that does what all of them do together.

    Args:
        loras: the LoRAs, in any order: paths or adapters.
        save_to: write the LoRA, a .safetensors file, while it is merged; its tensors then stay in the file. None:
            nothing is written.
        calibration: statistics of a tuned model, from `calibrate` or its file: what is lost is weighed by that model's
            output. Needs `rank`, `max_size` or `max_output_error`.
        images: first fit the scales on these images, to the output of `tuned`.
        base: the checkpoint that the LoRAs were made for, to fit the scales: a path, an open checkpoint or a state
            dict.
        tuned: the fine-tuned checkpoint to come close to, likewise.
        progress: a listener.

    Returns:
        The LoRA, with its `relative_error`.

    Raises:
        WrongBaseError: the LoRAs have different bases that no chain of tuned checkpoints connects.
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    given = listed(loras)
    with ExitStack() as stack:
        sources = None if images is None else stack.enter_context(image_files(images))
        models = None
        if base is not None and tuned is not None:
            models = opened_pair(stack, base, tuned)
        elif base is not None or tuned is not None:
            raise ConfigError(Option("base"), " and ", Option("tuned"), " fit the scales together. Give both.")
        config = _MERGE.bind(
            "merge",
            options,
            lora_path=tuple(path_of(one, f"LoRA {number}") for number, one in enumerate(given, 1)),
            save_to=Path(save_to or "LoRA.safetensors"),
            calibration=label_of(calibration),
            images=None if sources is None else str(sources),
            base_model_path=models[0].path if models else None,
            tuned_model_path=models[1].path if models else None,
        )
        rule = merge_rule(config)
        if save_to is not None:
            merge_workflow.check_output(config, image_paths(sources))
        read = [adapter_of(one, config.lora_alpha_is) for one in given]
        scaled = merge_workflow.scaled(config, read)
        origin = merge_workflow.base_of(config, scaled)
        if models is not None:
            scaled, origin, _ = merge_workflow.fitted(
                config, scaled, origin, *models, checked_image_paths(sources), progress
            )
        statistics = None if isinstance(calibration, str | Path) else calibration
        path = None if save_to is None else config.save_to
        found = merge_workflow.merged(config, rule, scaled, origin, path, statistics, progress)
    adapter = load_adapter(config.save_to) if found.adapter is None else found.adapter
    return CombinedAdapter(
        **contents(adapter),
        relative_error=found.ledger.total().relative_error,
        scales=tuple(scale.text for _, scale in scaled),
    )


@_RESIZE_ONE.documented
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
        opened = opened_base(stack, base)
        sources = None if images is None else stack.enter_context(image_files(images))
        config = _RESIZE.bind(
            function,
            options,
            lora_path=path_of(lora, "LoRA"),
            save_to=Path(save_to or "LoRA.safetensors"),
            base_model_path=None if opened is None else opened.path,
            calibration=label_of(calibration),
            images=None if sources is None else str(sources),
        )
        rule = resize_workflow.check(config)
        if function == "resize" and len(rule.names) > 1:
            raise ConfigError(
                Option(rule.option), f" asks for {len(rule.names)} LoRAs, resize gives one. Call resize_several."
            )
        paths = [None] * len(rule.names)
        if save_to is not None:
            paths = resize_workflow.output_paths(config, rule, image_paths(sources))
        component = None if opened is None else opened.component()
        adapter = adapter_of(lora, config.lora_alpha_is, base=component)
        with together():
            found = resize_workflow.resized(
                config,
                rule,
                adapter,
                paths,
                statistics=lambda: statistics_of(calibration),
                base=opened,
                images=checked_image_paths(sources),
                progress=progress,
            )
    return [_with_error(adapter, rule, path, one) for path, one in zip(paths, found, strict=True)]


def _with_error(adapter: Adapter, rule: RankRule, path: Path | None, found: Resized) -> ResizedAdapter:
    made = found.adapter if path is None else load_adapter(path)
    assert made is not None
    return ResizedAdapter(
        **contents(made),
        resize_error=found.ledger.total().relative_error,
        left_out=names_left_out(found),
        predicted=found.predicted,
        trial=found.chosen.images,
        sizes=found.sizes,
        notes=notes(adapter, rule, found),
    )
