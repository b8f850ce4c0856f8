"""Measure how well an adapter reproduces the tuned checkpoint: the verb `validate`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.apply import adapted_to_lbm, check_base, check_fit
from lbm_lora.checkpoint import Checkpoint, FingerprintBuilder, dtype_of, open_checkpoint, pair
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.errors import ConfigError, Option, QualityError
from lbm_lora.files import current, together, write_text
from lbm_lora.hub import localized
from lbm_lora.model.baseline import check_pair
from lbm_lora.naming import ParamName, select
from lbm_lora.progress import SILENT, Progress, warn
from lbm_lora.report import (
    ImageSet,
    Report,
    WeightReport,
    compare_weights,
    file_labels,
    weight_report,
    write_report,
)
from lbm_lora.report.wording import plural
from lbm_lora.workflows.layers import layer_lines
from lbm_lora.workflows.sources import image_paths
from lbm_lora.workflows.validate_files import (
    check_output,
    layer_names_file,
    layer_names_text,
    lora_digests,
    provenance_of,
    report_folder,
    with_report,
)

if TYPE_CHECKING:
    from lbm_lora.fidelity.comparison import Comparison, ComparisonResult

LORA = "base + LoRA"
"""Variant that the limits apply to."""


@dataclass(frozen=True, kw_only=True)
class ValidateResult:
    """Measurements, the files of the report, and the missed limits."""

    report: Report
    files: tuple[Path, ...]
    layer_names: Path
    seen_images: tuple[str, ...]
    """Images among --images that the LoRA was calibrated or refined on, by the records in its file."""
    failures: tuple[QualityError, ...]

    def raise_for_quality(self) -> None:
        """Raise an error if a given limit was missed.

        Raises:
            QualityError: a given limit was missed.
        """
        if self.failures:
            raise QualityError(*[part for one in self.failures for part in (" ", *one.args)][1:])


def run(config: ValidateConfig, progress: Progress = SILENT) -> ValidateResult:
    """Validate a LoRA and write the reports.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    return compared(localized(with_report(config), progress), progress)


def compared(config: ValidateConfig, progress: Progress) -> ValidateResult:
    """Validate a LoRA as `run` does. Its file may wait for others (see `lbm_lora.files.together`).

    Args:
        config: all its files are local.
    """
    names = check(config)
    check_output(config, image_paths(config.images))
    plan = planned(config, config.images)
    with open_checkpoint(config.base_model_path) as base, open_checkpoint(config.tuned_model_path) as tuned:
        component = base.component()
        digests = lora_digests(config)
        adapter = load_adapter(current(config.lora_path), config.lora_alpha_is, base=component)
        adapter = replace(adapter, path=config.lora_path)  # it may be at a temporary path until the command ends
        others = {name: load_adapter(path, config.lora_alpha_is, base=component) for name, path in names.items()}
        found = measured(config, base, tuned, adapter, others, plan, progress)
    return write_reports(config, found, digests)


run_validate = run
"""Its name on the public page."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements, and the contents of the files next to the report."""

    report: Report
    image: bytes | None
    """PNG file of the worst images side by side."""
    shown: Sequence[ImageSet]
    """Images for the page."""
    layers: Sequence[str]
    """A line for each layer that a LoRA can hold."""
    seen_images: tuple[str, ...]
    """Names of images that the LoRA was calibrated or refined on."""
    failures: tuple[QualityError, ...]


def measured(
    config: ValidateConfig,
    base: Checkpoint,
    tuned: Checkpoint,
    adapter: Adapter,
    others: Mapping[str, Adapter],
    plan: "Comparison | None",
    progress: Progress,
) -> Measured:
    """Measure adapters between two open checkpoints.

    Args:
        config: its paths name things for messages and the report; nothing is read from them.
        others: variant -> other adapter; see `check`.
        plan: plan of the comparison of images; see `planned`.
    """
    shapes = base.component().shapes
    adapter = adapted_to_lbm(adapter, shapes).adapter
    others = {name: adapted_to_lbm(other, shapes).adapter for name, other in others.items()}
    weights, lines = _weights(config, base, tuned, adapter, list(others.values()), progress)
    outputs = None if plan is None else _outputs(plan, base, tuned, {LORA: adapter, **others}, progress)
    seen = () if plan is None or outputs is None else _warn_of_seen(plan, adapter, outputs)
    report = Report(weights=weights, outputs=None if outputs is None else outputs.scores)
    return Measured(
        report=report,
        image=None if outputs is None else outputs.image,
        shown=() if outputs is None else outputs.shown,
        layers=lines,
        seen_images=seen,
        failures=_failures(config, report),
    )


def write_reports(config: ValidateConfig, found: Measured, digests: Mapping[str, str]) -> ValidateResult:
    """Write the reports, and the list of layer names.

    Args:
        digests: role -> digest of the file of a LoRA that was measured.
    """
    folder, layer_names = report_folder(config), layer_names_file(config)
    with together():
        provenance = provenance_of(config, digests)
        files = write_report(found.report, folder, image=found.image, shown=found.shown, provenance=provenance)
        write_text(layer_names, layer_names_text(config, found.layers))
    return ValidateResult(
        report=found.report,
        files=files,
        layer_names=layer_names,
        seen_images=found.seen_images,
        failures=found.failures,
    )


def check(config: ValidateConfig) -> dict[str, Path]:
    """Return the other LoRAs by variant; invalid options fail before a file is opened."""
    given = {
        "fail_below_psnr": config.fail_below_psnr is not None,
        "other_lora_path": bool(config.other_lora_path),
        "lpips_weights": config.lpips_weights is not None,
        "lpips_net": config.lpips_net is not None,
    }
    alone = next((name for name, there in given.items() if there), None)
    if alone is not None and config.images is None:
        raise ConfigError(Option(alone), " needs images. Add ", Option("images"), ", or omit it.")
    return _other_names(config)


def _other_names(config: ValidateConfig) -> dict[str, Path]:
    """Return the files of the other LoRAs by variant, which is their stem."""
    names = {path.stem: path for path in config.other_lora_path}
    if len(names) < len(config.other_lora_path) or names.keys() & {"source", "base", LORA, "tuned"}:
        raise ConfigError(
            Option("other_lora_path"),
            f" {' '.join(map(str, config.other_lora_path))}: the report names LoRAs by their file "
            "names, which must differ (and not be source, base or tuned). Rename one.",
        )
    return names


def _weights(
    config: ValidateConfig,
    base: Checkpoint,
    tuned: Checkpoint,
    adapter: Adapter,
    others: Sequence[Adapter],
    progress: Progress,
) -> tuple[WeightReport, list[str]]:
    """Return the weight report, and a line for every layer that a LoRA can hold."""
    check_pair(base, tuned)
    component = tuned.component()
    left_out = select(component, config.exclude, prefix=component.prefix, params=True) if config.exclude else set()
    pairing = pair(base.component(), component, excluded=frozenset(map(ParamName, left_out)))
    shapes = component.shapes
    fit, *_ = [check_fit(each, shapes, allow_unmatched=config.allow_unmatched) for each in (adapter, *others)]
    progress.start(len(pairing.pairs), "comparing weights")
    builder = FingerprintBuilder()
    ledger = compare_weights(pairing, adapter, base=builder, on_tensor=progress.advance)
    found = None if left_out else builder.build()  # nothing can be concluded from a part
    for each in (adapter, *others):
        check_base(each, pairing.base, allow_other_base=config.allow_other_base, found=found)
    base_label, tuned_label = file_labels(base.path, tuned.path)
    report = weight_report(
        ledger,
        base=base_label,
        tuned=tuned_label,
        adapter=config.lora_path.name,
        failed=fit.unmatched,
        made_for_output=adapter.metadata.is_made_for_output,
    )
    return report, layer_lines(component, adapter)


def planned(config: ValidateConfig, images: str | tuple[str, ...] | None) -> "Comparison | None":
    """Return the comparison of images, checked before the weights are read; None without images."""
    if images is None:
        return None
    # only this needs the network classes: weights are compared without them
    from lbm_lora.fidelity.comparison import ComparisonSettings, plan_comparison

    return plan_comparison(
        ComparisonSettings(
            images=images,
            steps=config.num_inference_steps,
            seed=config.seed,
            size=config.size,
            device=config.device,
            dtype=dtype_of(config.torch_dtype),
            config_path=config.config_path,
            lpips_net=config.lpips_net,
            lpips_weights=config.lpips_weights,
        )
    )


def _outputs(
    plan: "Comparison", base: Checkpoint, tuned: Checkpoint, adapters: Mapping[str, Adapter], progress: Progress
) -> "ComparisonResult":
    from lbm_lora.fidelity.comparison import compare_outputs

    return compare_outputs(plan, base=base, tuned=tuned, adapters=adapters, progress=progress)


def _warn_of_seen(plan: "Comparison", adapter: Adapter, outputs: "ComparisonResult") -> tuple[str, ...]:
    """Warn of images that the LoRA was made with, and return their names."""
    from lbm_lora.fidelity.seen import remark_on_seen, seen_of

    seen = seen_of(adapter, plan.digests)
    remark = remark_on_seen(seen, outputs.scores.images, LORA)
    if remark:
        warn(remark)
    return tuple(path.name for path, is_seen in zip(plan.sources, seen, strict=True) if is_seen)


def _failures(config: ValidateConfig, report: Report) -> tuple[QualityError, ...]:
    """Return one sentence for each missed limit."""
    failures: list[QualityError] = []
    error = report.weights.relative_error
    if config.fail_above is not None and not error <= config.fail_above:
        limit = f" {config.fail_above:g}."
        failures.append(QualityError(f"The total relative error is {error:.4f}, above ", Option("fail_above"), limit))
    if config.fail_below_psnr is not None and report.outputs is not None:
        entries = [entry for entry in report.outputs.summary if entry.variant == LORA]
        worst = min(entries, key=lambda entry: float(entry.worst_psnr))
        if not float(worst.worst_psnr) >= config.fail_below_psnr:
            failures.append(
                QualityError(
                    f"{worst.worst_image}: {float(worst.worst_psnr):.2f} dB to the tuned model's image at "
                    f"{plural(worst.steps, 'step')}, below ",
                    Option("fail_below_psnr"),
                    f" {config.fail_below_psnr:g}.",
                )
            )
    return tuple(failures)
