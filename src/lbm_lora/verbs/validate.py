"""Measure how well an adapter reproduces the tuned checkpoint: the verb `validate`."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval

from lbm_lora.errors import ConfigError, Option, QualityError, plural, with_name
from lbm_lora.progress import SILENT, Progress, warn
from lbm_lora.verbs.options import (
    ADVANCED,
    AllowOtherBase,
    AllowUnmatched,
    Base,
    CommandDefault,
    ConfigPath,
    File,
    FlagName,
    Images,
    Lora,
    LoraAlphaIs,
    Named,
    OutputFolder,
    Overwrite,
    Pattern,
    Precision,
    Seed,
    Several,
    Size,
    Steps,
    Tuned,
)
from lbm_lora.verbs.verb import EVERYDAY, verb

if TYPE_CHECKING:
    from torch import nn

    from lbm_lora.adapter import Adapter
    from lbm_lora.checkpoint import Checkpoint, Component
    from lbm_lora.fidelity.comparison import Comparison, ComparisonResult
    from lbm_lora.fidelity.network import NetworkErrors, Run
    from lbm_lora.fidelity.weights import WeightReport
    from lbm_lora.files import Outputs
    from lbm_lora.report import Report
    from lbm_lora.verbs.values import LoraLike, NetworkLike

LORA = "base + LoRA"
"""Variant that the limits apply to."""

_BESIDE = ""  # the folder of the report: next to the LoRA
_LAYER_NAMES = "lora_layer_names.txt"


@dataclass(frozen=True, kw_only=True)
class ValidateResult:
    """Measurements, the files of the report, and the missed limits."""

    report: "Report"
    files: tuple[Path, ...]
    layer_names: Path
    seen_images: tuple[str, ...]
    """Images among --images that the LoRA was calibrated or refined on, by the records in its file."""
    failures: tuple[QualityError, ...]


def _text(result: ValidateResult, verbose: bool) -> str:
    """Return the complete report."""
    from lbm_lora.report import full_text
    from lbm_lora.verbs.lines import file_lines, layer_lines, paragraphs

    return paragraphs(
        layer_lines(result.report.weights, verbose),
        full_text(result.report),
        file_lines(*result.files, result.layer_names),
    )


@verb(
    "measure how well a LoRA reproduces the tuned checkpoint",
    group=EVERYDAY,
    examples=(
        "lbm-lora validate --base_model_path base.safetensors --tuned_model_path tuned.safetensors --lora_path "
        "lora.safetensors",
        "lbm-lora validate --base_model_path base.safetensors --tuned_model_path tuned.safetensors --lora_path "
        "lora.safetensors --images photos --fail_below_psnr 40",
    ),
    text=_text,
)
def validate(
    base: Base,
    tuned: Tuned,
    lora: Lora,
    *,
    overwrite: Overwrite = False,
    images: Images | None = None,
    report: Annotated[OutputFolder, CommandDefault(_BESIDE)] = None,
    fail_above: Annotated[float | None, Named("SHARE"), Interval(ge=0)] = None,
    fail_below_psnr: Annotated[float | None, Named("DB")] = None,
    num_inference_steps: Several[Steps] = (),
    size: Size | None = None,
    device: Annotated[str, Named("DEVICE")] = "auto",
    other_lora_path: Annotated[Several[Lora], FlagName("other_lora_path"), ADVANCED] = (),
    layer_names: Annotated[File | None, ADVANCED] = None,
    exclude: Annotated[Several[Pattern], ADVANCED] = (),
    lpips_weights: Annotated[File | None, ADVANCED] = None,
    lpips_net: Annotated[Literal["vgg", "alex", "squeeze"] | None, ADVANCED] = None,
    seed: Annotated[Seed, ADVANCED] = 0,
    torch_dtype: Annotated[Precision, ADVANCED] = "float",
    lora_alpha_is: LoraAlphaIs = "auto",
    config_path: ConfigPath = None,
    allow_other_base: AllowOtherBase = False,
    allow_unmatched: AllowUnmatched = False,
    progress: Progress = SILENT,
) -> "tuple[Report, ValidateResult]":
    """Compare base + LoRA with the tuned checkpoint, in weights and, with `images`, in images.

    Args:
        base: Checkpoint that the LoRA was made for; may be user/repo on the hub.
        tuned: The fine-tuned checkpoint.
        lora: The LoRA: a file, or user/repo on the hub.
        images: Also compare the outputs of base, base + LoRA and tuned on these: an image, a folder or a quoted glob.
        report: Write report.txt, report.json, report.html and lora_layer_names.txt to this folder. Default:
            LORA_report, next to the LoRA; in the current folder for a LoRA on the hub.
        fail_above: Exit with 1 if the total relative error of the weights is above this (0.05: 5 %).
        fail_below_psnr: Exit with 1 if an image of base + LoRA is below this PSNR (dB) to the tuned model's. Needs
            `images`.
        num_inference_steps: Calls of the denoiser per image, one number or several. Default: those the model was
            trained for (1 2 4).
        size: Run `images` at this size: the square root of the pixel budget (1024: about one megapixel). Default: the
            model's own.
        device: Run `images` on this device: auto (CUDA if available, else the CPU), cpu, cuda, cuda:N or mps.
        other_lora_path: Also measure these LoRAs on `images`. The report then plots the error of each against its
            size.
        layer_names: Write the list of layer names here. Default: lora_layer_names.txt in the report folder.
        exclude: Leave these tensors out of the comparison: part of a name, a glob, or re:REGEX.
        lpips_weights: Also measure LPIPS on `images`, with this file of VGG16, AlexNet or SqueezeNet (torchvision's
            names).
        lpips_net: Also measure LPIPS on `images`, with this network. Default: the one in `lpips_weights`. Without that
            file, torchvision downloads the weights.
        seed: Seed for the bridge noise.
        torch_dtype: Run `images` in this precision.
        config_path: Read LBM's config.yaml from here, for checkpoints that have none in them or next to them.
        allow_other_base: Continue even if the LoRA was made from another base.
        allow_unmatched: Continue even if keys of the LoRA match nothing.

    Returns:
        What was measured: `weights`, and with `images` also `outputs`. Nothing is written without `report` or
        `layer_names`.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
        QualityError: `fail_above` or `fail_below_psnr` was missed.
    """
    from lbm_lora.adapter import load_adapter
    from lbm_lora.apply import adapted_to_lbm
    from lbm_lora.checkpoint import dtype_of
    from lbm_lora.files import Outputs, current, together, write_text
    from lbm_lora.report import Provenance, Report, installed_versions, write_report
    from lbm_lora.verbs.values import image_files, image_paths, inputs, listed, opened_pair, path_of, several

    loras = [*listed(lora), *listed(other_lora_path)]
    paths = {f"LoRA {n}" if n > 1 else "LoRA": path_of(one, f"LoRA {n}") for n, one in enumerate(loras, 1)}
    if images is None:
        _check_without_images(fail_below_psnr, loras[1:] or None, lpips_weights, lpips_net)
    variants = _variants(list(paths.values())[1:])
    folder = _report_folder(lora) if report == _BESIDE else None if report is None else Path(report)
    names_file = Path(layer_names) if layer_names else folder and folder / _LAYER_NAMES
    lbm_path = None if config_path is None else Path(config_path)
    with ExitStack() as stack:
        sources = None if images is None else stack.enter_context(image_files(images))
        outputs = Outputs(overwrite=overwrite).reads(*inputs(base, tuned, *loras, lpips_weights, lbm_path))
        outputs.reads(*image_paths(sources))
        outputs.then(planned_report(folder, names_file, has_images=sources is not None)).check()
        plan = None
        if sources is not None:
            from lbm_lora.fidelity.comparison import ComparisonSettings, plan_comparison  # only this needs the networks

            settings = ComparisonSettings(
                images=sources,
                steps=several(num_inference_steps),
                seed=seed,
                size=size,
                device=device,
                dtype=dtype_of(str(torch_dtype)),
                config_path=lbm_path,
                lpips_net=lpips_net,
                lpips_weights=None if lpips_weights is None else Path(lpips_weights),
            )
            plan = plan_comparison(settings)  # before a checkpoint is read
        pair = opened_pair(stack, base, tuned)
        component = pair[0].component()
        adapters = [
            replace(load_adapter(current(one), lora_alpha_is, base=component), path=one)
            if isinstance(one, Path)
            else one
            for one in loras
        ]
        adapters = [adapted_to_lbm(one, component.shapes).adapter for one in adapters]
        weights = _compared_weights(
            pair,
            adapters,
            name=paths["LoRA"].name,
            exclude=several(exclude),
            allow_other_base=allow_other_base,
            allow_unmatched=allow_unmatched,
            progress=progress,
        )
        compared, seen = None, ()
        if plan is not None:
            from lbm_lora.fidelity.comparison import compare_outputs

            named = dict(zip((LORA, *variants), adapters, strict=True))
            compared = compare_outputs(plan, base=pair[0], tuned=pair[1], adapters=named, progress=progress)
            seen = _warn_of_seen(plan, adapters[0], compared)
        measured = Report(weights=weights, outputs=None if compared is None else compared.scores)
        files: tuple[Path, ...] = ()
        with together():
            if folder is not None:
                models = {"base": _name_of(base, pair[0]), "tuned": _name_of(tuned, pair[1])}
                provenance = Provenance(
                    files=models | {role: path.name for role, path in paths.items()},
                    digests=_digests(dict(zip(paths, loras, strict=True))),
                    settings={
                        "images": images is not None,
                        "num_inference_steps": " ".join(map(str, several(num_inference_steps))) or "as trained",
                        "seed": seed,
                        "size": size,
                        "torch_dtype": str(torch_dtype),
                    },
                    versions=installed_versions(),
                )
                image, shown = (None, ()) if compared is None else (compared.image, compared.shown)
                files = write_report(measured, folder, image=image, shown=shown, provenance=provenance)
            if names_file is not None:
                lines = _layer_names(pair[1].component(), adapters[0])
                write_text(names_file, _layer_names_text(lines, _name_of(tuned, pair[1]), paths["LoRA"].name))
    return measured, ValidateResult(
        report=measured,
        files=files,
        layer_names=names_file or Path(_LAYER_NAMES),
        seen_images=seen,
        failures=_failures(measured, fail_above, fail_below_psnr),
    )


def planned_report(folder: Path | None, layer_names: Path | None = None, *, has_images: bool) -> "Outputs":
    """Return what a validation writes: the report in a folder, and the list of layers, there by default."""
    from lbm_lora.files import Outputs
    from lbm_lora.report import report_paths

    outputs = Outputs()
    if folder is not None:
        for path in report_paths(folder, has_image=has_images):
            outputs.writes(path, "the report")
        layer_names = layer_names or folder / _LAYER_NAMES
    if layer_names is not None:
        is_beside = folder is not None and layer_names == folder / _LAYER_NAMES
        outputs.writes(layer_names, "the list of layers" if is_beside else "")
    return outputs


def _check_without_images(
    fail_below_psnr: float | None, others: object, lpips_weights: object, lpips_net: str | None
) -> None:
    options = {
        "fail_below_psnr": fail_below_psnr,
        "other_lora_path": others,
        "lpips_weights": lpips_weights,
        "lpips_net": lpips_net,
    }
    for name, value in options.items():
        if value is not None:
            raise ConfigError(Option(name), " needs images. Add ", Option("images"), ", or omit it.")


def _variants(others: Sequence[Path]) -> list[str]:
    """Return the names of the other LoRAs in the report: their stems."""
    names = [path.stem for path in others]
    if len(set(names)) < len(names) or {*names} & {"source", "base", LORA, "tuned"}:
        raise ConfigError(
            Option("other_lora_path"),
            f" {' '.join(map(str, others))}: the report names LoRAs by their file names, which must differ (and not be "
            "source, base or tuned). Rename one.",
        )
    return names


def _report_folder(lora: "LoraLike") -> Path:
    """Return the default folder of the report: next to the LoRA, but not in the cache of the hub."""
    from lbm_lora.hub import hub_name
    from lbm_lora.verbs.values import path_of

    path = path_of(lora, "LoRA")
    name = hub_name(path)
    if name is not None:
        return Path(f"{name.stem}_report")
    path = with_name(path)
    return path.with_name(f"{path.name if path.is_dir() else path.stem}_report")  # a folder of PEFT has no suffix


def _name_of(given: object, opened: "Checkpoint") -> str:
    """Return the name of a checkpoint in the report: as it was given, a folder's too; that of the file on the hub."""
    from lbm_lora.hub import hub_name

    return Path(given).name if isinstance(given, str | Path) and hub_name(given) is None else opened.path.name


def _digests(loras: "dict[str, Path | Adapter]") -> dict[str, str]:
    """Return role -> digest of the LoRA's file, of those that are what their files hold."""
    from lbm_lora.adapter.adapter_file import is_unchanged
    from lbm_lora.files import current, file_digest

    files = {
        role: current(one) if isinstance(one, Path) else one.path if is_unchanged(one) else None
        for role, one in loras.items()
    }
    return {role: file_digest(file) for role, file in files.items() if file is not None and file.is_file()}


def _compared_weights(
    pair: "tuple[Checkpoint, Checkpoint]",
    adapters: "Sequence[Adapter]",
    *,
    name: str,
    exclude: Sequence[str],
    allow_other_base: bool,
    allow_unmatched: bool,
    progress: Progress,
) -> "WeightReport":
    """Return the errors of the first adapter; all of them must fit the checkpoints."""
    from lbm_lora.apply import check_base, check_fit
    from lbm_lora.checkpoint import FingerprintBuilder
    from lbm_lora.checkpoint import pair as paired
    from lbm_lora.fidelity.weights import compare_weights, file_labels, weight_report
    from lbm_lora.model.baseline import check_pair
    from lbm_lora.naming import ParamName, select

    base, tuned = pair
    check_pair(base, tuned)
    component = tuned.component()
    left_out = select(component, exclude, prefix=component.prefix, params=True) if exclude else set()
    pairing = paired(base.component(), component, excluded=frozenset(map(ParamName, left_out)))
    fit, *_ = [check_fit(each, component.shapes, allow_unmatched=allow_unmatched) for each in adapters]
    progress.start(len(pairing.pairs), "comparing weights")
    builder = FingerprintBuilder()
    ledger = compare_weights(pairing, adapters[0], base=builder, on_tensor=progress.advance)
    found = None if left_out else builder.build()  # nothing can be concluded from a part
    for each in adapters:
        check_base(each, pairing.base, allow_other_base=allow_other_base, found=found)
    labels = file_labels(base.path, tuned.path)
    return weight_report(
        ledger,
        base=labels[0],
        tuned=labels[1],
        adapter=name,
        failed=fit.unmatched,
        made_for_output=adapters[0].metadata.is_made_for_output,
    )


def _warn_of_seen(plan: "Comparison", adapter: "Adapter", compared: "ComparisonResult") -> tuple[str, ...]:
    """Warn of images that the LoRA was made with, and return their names."""
    from lbm_lora.fidelity.seen import remark_on_seen, seen_of

    seen = seen_of(adapter, plan.digests)
    remark = remark_on_seen(seen, compared.scores.images, LORA)
    if remark:
        warn(remark)
    return tuple(path.name for path, is_seen in zip(plan.sources, seen, strict=True) if is_seen)


def _failures(report: "Report", fail_above: float | None, fail_below_psnr: float | None) -> tuple[QualityError, ...]:
    """Return one sentence for each missed limit."""
    failures: list[QualityError] = []
    error = report.weights.relative_error
    if fail_above is not None and not error <= fail_above:
        limit = f" {fail_above:g}."
        failures.append(QualityError(f"The total relative error is {error:.4f}, above ", Option("fail_above"), limit))
    if fail_below_psnr is not None and report.outputs is not None:
        entries = [entry for entry in report.outputs.summary if entry.variant == LORA]
        worst = min(entries, key=lambda entry: float(entry.worst_psnr))
        if not float(worst.worst_psnr) >= fail_below_psnr:
            failures.append(
                QualityError(
                    f"{worst.worst_image}: {float(worst.worst_psnr):.2f} dB to the tuned model's image at "
                    f"{plural(worst.steps, 'step')}, below ",
                    Option("fail_below_psnr"),
                    f" {fail_below_psnr:g}.",
                )
            )
    return tuple(failures)


def _layer_names(component: "Component", adapter: "Adapter") -> list[str]:
    """Return a line for each layer with a weight matrix, sorted, with the component's prefix.

    A line is the name alone if the adapter has a lora module for it, which training can use; else a comment.
    """
    from lbm_lora.factorize import has_matrix_view
    from lbm_lora.naming import ParamName, leaf_of, module_of, weight_of

    names = sorted(
        module_of(ParamName(name))
        for name, spec in component.specs.items()
        if leaf_of(ParamName(name)) == "weight" and has_matrix_view(spec.shape)
    )
    return [
        component.prefix + name
        if name in adapter.modules
        else f"# {component.prefix}{name}: {'dense' if weight_of(name) in adapter.dense else 'not'} in this LoRA"
        for name in names
    ]


def _layer_names_text(lines: Sequence[str], tuned: str, lora: str) -> str:
    """Return the documented file: two comment lines, a blank one, the names."""
    from lbm_lora.files import MARK

    lacking = sum(line.startswith("#") for line in lines)
    more = f" Comments: {lacking} that {lora} lacks." if lacking else ""
    head = f"# The {len(lines)} layers of {tuned} that a LoRA can hold.{more}\n"
    use = f"# Copy names, or parts of them, into trainable_lora_modules of a training configuration ({MARK}).\n"
    return head + use + "\n" + "\n".join(lines) + "\n"


def validate_outputs(
    base: "NetworkLike", tuned: "nn.Module", lora: Lora, run: "Run", *, progress: Progress = SILENT
) -> "NetworkErrors":
    """Measure the relative errors of any network's outputs with the base's weights, and with base + LoRA.

    Args:
        base: the checkpoint that the LoRA is relative to: a path, an open checkpoint, a state dict or a module.
        tuned: the tuned network, in evaluation mode. Its weights are replaced meanwhile, and put back.
        lora: the LoRA: a path or an adapter.
        run: runs `tuned` over samples, and yields its output for each; see `calibrate`.
        progress: a listener.

    Returns:
        The errors of each sample.
    """
    from torch import nn

    from lbm_lora.fidelity.network import network_errors
    from lbm_lora.hub import open_checkpoint
    from lbm_lora.verbs.values import adapter_of

    weights = base.state_dict() if isinstance(base, nn.Module) else base
    with open_checkpoint(weights, label="base state dict") as opened:
        component = opened.component()
        return network_errors(tuned, run, component, adapter_of(lora, "auto", component), progress)
