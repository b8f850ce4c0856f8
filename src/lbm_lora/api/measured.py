"""Measure LoRAs against their tuned model: validate."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lbm_lora.adapter import Adapter
from lbm_lora.adapter.adapter_file import is_unchanged
from lbm_lora.api.options import Options
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report import Report
from lbm_lora.verbs.values import Images, LoraLike, adapter_of, image_files, listed, opened_pair, path_of
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
