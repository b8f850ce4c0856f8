"""Measure LoRAs against their tuned model, and refine them on its outputs: validate, refine."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lbm_lora.adapter import Adapter, load_adapter, save_adapter
from lbm_lora.adapter.unchanged import is_unchanged
from lbm_lora.api.options import Options
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.configs.refine import RefineConfig
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report import Report
from lbm_lora.verbs.adapters import RefinedAdapter, contents
from lbm_lora.verbs.values import Images, LoraLike, adapter_of, image_files, listed, opened_pair, path_of
from lbm_lora.workflows import refine as refine_workflow
from lbm_lora.workflows import validate as validate_workflow
from lbm_lora.workflows.sources import image_paths
from lbm_lora.workflows.validate_files import lora_digests

_VALIDATE = Options(
    ValidateConfig,
    hidden=(
        *("base_model_path", "tuned_model_path", "lora_path", "other_lora_path", "images", "report", "layer_names"),
        *("fail_above", "fail_below_psnr"),  # the exit codes of a command
    ),
)
_REFINE = Options(
    RefineConfig,
    hidden=("base_model_path", "tuned_model_path", "lora_path", "images", "held_images", "save_to", "also"),
)


@_VALIDATE.documented
def validate(
    base: CheckpointLike,
    tuned: CheckpointLike,
    lora: LoraLike,
    *,
    images: Images | None = None,
    other_lora_path: LoraLike | Sequence[LoraLike] = (),
    report: Path | str | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> Report:
    """Compare base + LoRA with the tuned checkpoint, in weights and, with `images`, in images.

    Args:
        base: the checkpoint that the LoRA is relative to: a path, an open checkpoint or a state dict.
        tuned: the fine-tuned checkpoint, likewise.
        lora: the LoRA: a path or an adapter.
        images: also compare the outputs of base, base + LoRA and tuned on them.
        other_lora_path: further LoRAs to measure on `images`: paths or adapters.
        report: folder for report.txt, report.json, report.html and lora_layer_names.txt. None: nothing is written.
        progress: a listener.

    Returns:
        What was measured: `weights`, and with `images` also `outputs`.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    others = listed(other_lora_path)
    with ExitStack() as stack:
        opened = opened_pair(stack, base, tuned)
        sources = None if images is None else stack.enter_context(image_files(images))
        config = _VALIDATE.bind(
            "validate",
            options,
            base_model_path=opened[0].path,
            tuned_model_path=opened[1].path,
            lora_path=path_of(lora, "LoRA"),
            other_lora_path=tuple(path_of(one, f"LoRA {number}") for number, one in enumerate(others, 2)),
            images=None if sources is None else str(sources),
            report=None if report is None else Path(report),
        )
        names = validate_workflow.check(config)
        if report is not None:
            validate_workflow.check_output(config, image_paths(sources))
        component = opened[0].component()
        digests = {} if report is None else _digests_of(config, (lora, *others))
        adapter, *further = [adapter_of(one, config.lora_alpha_is, component) for one in (lora, *others)]
        plan = validate_workflow.planned(config, sources)
        variants = dict(zip(names, further, strict=True))
        found = validate_workflow.measured(config, *opened, adapter, variants, plan, progress)
    if report is not None:
        validate_workflow.write_reports(config, found, digests)
    return found.report


def _digests_of(config: ValidateConfig, loras: Sequence[LoraLike]) -> dict[str, str]:
    """Return the digests of those LoRAs that are what their files hold, by their role in the report."""
    changed = {
        f"LoRA {number}" if number > 1 else "LoRA"
        for number, lora in enumerate(loras, 1)
        if isinstance(lora, Adapter) and not is_unchanged(lora)
    }
    return {role: digest for role, digest in lora_digests(config).items() if role not in changed}


@_REFINE.documented
def refine(
    base: CheckpointLike,
    tuned: CheckpointLike,
    lora: LoraLike,
    images: Images,
    *,
    held_images: Images | None = None,
    save_to: Path | str | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> RefinedAdapter:
    """Train a LoRA on the tuned model's own outputs on images, keeping its ranks; the better one is kept.

    Args:
        base: the checkpoint that the LoRA was made for: a path, an open checkpoint or a state dict.
        tuned: the fine-tuned checkpoint whose outputs it is trained on, likewise.
        lora: the LoRA to refine, a path or an adapter; the best start is a calibrated extraction.
        images: two or more sources of the kind that the model is used on, the more the better.
        held_images: other images to measure on. None: one in 8 of the images, up to 16, which are not learnt from.
        save_to: write the refined LoRA to this path. A state next to it, until it is there, lets a run that was stopped
            go on. None: nothing is written.
        progress: a listener.

    Returns:
        The refined LoRA, with its `outcome`.

    Raises:
        MissingExtraError: a package of the train extra is not installed.
        InputError: of the kind that fits, before a model is loaded.
        QualityError: the loss is not finite any more.
    """
    best: list[Adapter] = []
    with ExitStack() as stack:
        opened = opened_pair(stack, base, tuned)
        sources = stack.enter_context(image_files(images))
        held = None if held_images is None else stack.enter_context(image_files(held_images))
        config = _REFINE.bind(
            "refine",
            options,
            base_model_path=opened[0].path,
            tuned_model_path=opened[1].path,
            lora_path=path_of(lora, "LoRA"),
            images=str(sources),
            save_to=Path(save_to or "LoRA.safetensors"),
        )
        refine_workflow.check(config)
        from lbm_lora.refinement.images import split_images  # only now: it needs the network classes

        split = split_images(sources, held)
        if save_to is not None:
            refine_workflow.check_output(config, split.all)
        outcome = refine_workflow.refined(
            config,
            *opened,
            adapter_of(lora, config.lora_alpha_is, opened[0].component()),
            split,
            keep=lambda made: best.append(made) if save_to is None else save_adapter(made, config.save_to),
            state=None if save_to is None else refine_workflow.state_of(config),
            progress=progress,
        )
    return RefinedAdapter(**contents(best[-1] if save_to is None else load_adapter(save_to)), outcome=outcome)
