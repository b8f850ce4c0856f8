"""Extract a LoRA from a fine-tuned checkpoint: the verb `extract`."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Interval

from lbm_lora.errors import ConfigError, Option, give_one
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import (
    ADVANCED,
    Also,
    Calibration,
    ConvRank,
    Device,
    ExtractPrecision,
    File,
    FlagName,
    Images,
    KeepEnergy,
    MaxModuleError,
    MaxSizes,
    Named,
    Network,
    NetworkRun,
    Output,
    Overwrite,
    Pattern,
    Rank,
    Ranks,
    Several,
)
from lbm_lora.verbs.verb import EVERYDAY, one_of, verb

if TYPE_CHECKING:
    import torch

    from lbm_lora.adapter.twins import Twin
    from lbm_lora.calibration import Statistics
    from lbm_lora.checkpoint import Checkpoint
    from lbm_lora.choices import ForeignFormat
    from lbm_lora.extraction import ExtractedAdapter, Shrinkage
    from lbm_lora.fidelity import network as fidelity_network
    from lbm_lora.fidelity.weights import WeightReport
    from lbm_lora.files import Outputs
    from lbm_lora.model.make_base import BaseRecipe
    from lbm_lora.ranks import Prediction, RankRule, TrialImages
    from lbm_lora.verbs.adapters import MeasuredAdapter
    from lbm_lora.verbs.values import NetworkLike

_PAIR = "--base_model_path base.safetensors --tuned_model_path tuned.safetensors"


@dataclass(frozen=True, kw_only=True)
class ExtractResult:
    """Written files, with their errors; of several LoRAs, those of the first."""

    adapter: Path
    sidecar: Path
    nbytes: int
    linear_rank: int
    """Given rank of linear layers, else the highest chosen one."""
    conv_rank: int
    """Given rank of conv layers, else the highest chosen one."""
    report: "WeightReport"
    notes: tuple[str, ...]
    predicted: "Prediction | None" = None
    """Expected and measured error of the LoRA; None if ranks were given and nothing was calibrated."""
    images: "TrialImages | None" = None
    """Its images against the tuned model's, with --images or --min_psnr."""
    sizes: "tuple[Prediction, ...]" = ()
    """Predictions for other sizes, if ranks were chosen for all layers together."""
    further: tuple["ExtractResult", ...] = ()
    """LoRAs of the other ranks or sizes."""
    twins: "tuple[Twin, ...]" = ()
    """The LoRA in other formats."""
    shrinkage: "Shrinkage | None" = None
    """How it compares with plain SVD of the same size at the calibration's checks, and whether the statistics were
    shrunk for that; None if it was not run."""


def _text(result: ExtractResult, verbose: bool) -> str:
    """Return weight errors, predicted and measured errors, and files; a table for several LoRAs."""
    from lbm_lora.report import Report, short_text
    from lbm_lora.verbs.lines import file_lines, image_lines, layer_lines, paragraphs, prediction_lines, twin_files

    every = [result, *result.further]
    if len(every) > 1:
        return paragraphs(
            *(f"{one.adapter.name}\n{layer_lines(one.report, verbose)}" for one in every if verbose),
            _comparison(every),
            "\n".join(result.notes),
            file_lines(*(path for one in every for path in (one.adapter, one.sidecar, *twin_files(one.twins)))),
        )
    up_to = f"up to {result.linear_rank}, for convs up to {result.conv_rank}."
    ranks = f"Rank {_rank(result.linear_rank)}, conv rank {_rank(result.conv_rank)}, each as far as its matrix allows."
    return paragraphs(
        layer_lines(result.report, verbose),
        short_text(Report(weights=result.report)),
        f"Ranks chosen for all layers together: {up_to}" if result.sizes else ranks,
        "\n".join(result.notes),
        prediction_lines(result.predicted, result.sizes),
        _against_svd(result.shrinkage),
        image_lines(result.images),
        file_lines(result.adapter, result.sidecar, *twin_files(result.twins)),
    )


def _comparison(results: Sequence[ExtractResult]) -> str:
    """LoRAs of several ranks or sizes side by side."""
    from lbm_lora.report.table import numbers, table, words
    from lbm_lora.report.wording import megabytes, percent, plural

    first = results[0]
    is_output = first.predicted is not None and first.predicted.of == "output"
    heads = ["rank", "conv rank", "bytes", "error of weights"]
    heads += ["of output"] if is_output else []
    heads += ["PSNR", "worst"] if first.images is not None else []
    rows: list[list[str]] = []
    for one in results:
        row = [_rank(one.linear_rank), _rank(one.conv_rank), megabytes(one.nbytes), percent(one.report.relative_error)]
        if is_output and one.predicted is not None:
            row.append(percent(one.predicted.error))
        if one.images is not None:
            row += [f"{one.images.mean_psnr:.1f}", f"{one.images.worst_psnr:.1f}"]
        rows.append([*row, one.adapter.name])
    highest = ", with the highest of the ranks" if first.sizes else ""
    head = f"{plural(len(results), 'LoRA')}: {first.report.base} + LoRA against {first.report.tuned}{highest}"
    return "\n".join([head, *table([*map(numbers, heads), words("file")], rows)])


def _rank(rank: int) -> str:
    from lbm_lora.factorize import FULL_RANK

    return "full" if rank >= FULL_RANK else f"{rank:,}"


def _against_svd(shrinkage: "Shrinkage | None") -> str:
    """Return how the LoRA compares with plain SVD, and what was done where it was worse."""
    from lbm_lora.report.wording import percent

    if shrinkage is None:
        return ""
    used = {
        "given": "Better than plain SVD of the same size, with the statistics as they are",
        "shrunk": "The statistics were worse than plain SVD on some inputs, and shrunk with a ridge of "
        f"{shrinkage.ridge}",
        "plain": "The statistics were worse than plain SVD on some inputs, so plain SVD was used",
    }[shrinkage.kind]
    pairs = [("like the calibration's", shrinkage.errors.typical, shrinkage.plain.typical)]
    if shrinkage.errors.typical_shifted is not None and shrinkage.plain.typical_shifted is not None:
        pairs.append(("unlike them", shrinkage.errors.typical_shifted, shrinkage.plain.typical_shifted))
    errors = [f"{percent(one)} against {percent(other)} on inputs {kind}" for kind, one, other in pairs]
    useless = (
        f" The base without a LoRA has {percent(shrinkage.base.typical)}: this file is too small to help."
        if shrinkage.base is not None and shrinkage.is_useless
        else ""
    )
    return f"{used}: output error {', '.join(errors)}.{useless}"


@verb(
    "extract a LoRA from a fine-tuned checkpoint",
    group=EVERYDAY,
    examples=(
        f"lbm-lora extract {_PAIR} --save_to lora.safetensors",
        f"lbm-lora extract {_PAIR} --save_to lora.safetensors --max_size 200MB --calibration_images photos",
    ),
    text=_text,
)
def extract_several(
    base: Annotated[Network, FlagName("base_model_path")],
    tuned: Annotated[Network, FlagName("tuned_model_path")],
    *,
    overwrite: Overwrite = False,
    rank: Rank = None,
    conv_rank: ConvRank = None,
    ranks: Ranks = (),
    max_size: MaxSizes = (),
    max_error: Annotated[float | None, Named("SHARE")] = None,
    max_output_error: Annotated[float | None, Named("SHARE")] = None,
    min_psnr: Annotated[float | None, Named("DB")] = None,
    keep_energy: KeepEnergy = None,
    max_module_error: MaxModuleError = None,
    save_to: Output = None,
    calibration: Calibration = None,
    calibration_images: Images | None = None,
    images: Images | None = None,
    refit: bool = True,
    check: Annotated[bool, ADVANCED] = True,
    include: Annotated[Several[Pattern], ADVANCED] = (),
    exclude: Annotated[Several[Pattern], ADVANCED] = (),
    target_coverage: Annotated[Literal["full", "attention", "extended"], ADVANCED] = "full",
    dense: Annotated[bool, ADVANCED] = True,
    save_precision: Annotated[ExtractPrecision, ADVANCED] = None,
    also: Also = (),
    min_diff: Annotated[float, Interval(ge=0), ADVANCED] = 0.0,
    device: Device = "auto",
    create_base_model: Annotated[bool, ADVANCED] = False,
    backbone_signature: Annotated[str | None, Named("BACKBONE"), ADVANCED] = None,
    config_path: Annotated[File | None, ADVANCED] = None,
    run: NetworkRun = None,
    progress: Progress = SILENT,
) -> "tuple[list[MeasuredAdapter], ExtractResult]":
    """Extract a LoRA: the change of a fine-tune, matrices as low-rank factors, biases and norms dense. Choose the
    ranks with at most one of `ranks`, `max_size`, `max_error`, `max_output_error`, `min_psnr`, `keep_energy` and
    `max_module_error`, else with `rank` and `conv_rank`.

    Args:
        base: Checkpoint that the tuned one started from: .safetensors, shards with an index, .ckpt, a folder, or
            user/repo on the hub.
        tuned: The fine-tuned checkpoint.
        max_error: Write the smallest file whose total relative error of the weights is at most this: above 0, up to 1
            (0.3: 30 %). Not with calibration.
        max_output_error: Write the smallest file whose relative error of the denoiser's output is at most this: above
            0, up to 10 (0.05: 5 %). Needs calibration.
        min_psnr: Write the smallest file with which each of `images`, else of `calibration_images`, reaches this PSNR
            (dB) to the tuned model's one-step image. Needs calibration.
        save_to: Write the LoRA here: a .safetensors file.
        calibration: Minimise the error of the output instead of the weights, with these statistics from `lbm-lora
            calibrate`.
        calibration_images: Calibrate first on these source images, and keep the statistics next to the LoRA: an image,
            a folder or a quoted glob.
        images: Run a calibrated LoRA on these images and report their PSNR to the tuned model's one-step images.
        refit: With `calibration_images`: then fit biases, norms and one factor per rank together to the tuned model's
            outputs on these images, and keep the result if it is better on images that were held out. About a minute
            for a small network; on a CPU not done for the full-size model.
        check: Run a calibrated LoRA at the check points in the statistics, in fp32, and correct the predicted error
            with the result.
        include: Extract only tensors that match one of these patterns: part of a name, a glob, or re:REGEX. Default:
            all.
        exclude: Leave out tensors that match one of these patterns. Takes precedence over `include`.
        target_coverage: Extract these layers: all of them (full), only attn1 and attn2 (attention), or also
            feed-forward and projections (extended).
        dense: Keep the changes of biases and norms as dense deltas.
        save_precision: Store the LoRA in this precision. auto gives each rank, bias and norm the bits that it is
            worth, for a size or an error. Default: bf16; with calibration auto, or fp16 if ranks are given. Only
            lbm-lora reads auto and int8: `lbm-lora convert` makes files for other programs.
        min_diff: Leave out tensors whose largest change is below this. The ledger lists them.
        device: Decompose matrices on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N.
        create_base_model: If `base` does not exist, make the base there first, from `backbone_signature`.
        backbone_signature: Backbone for `create_base_model`: a hub id, a folder or a file. Default: as in `lbm-lora
            base`.
        config_path: LBM's config.yaml for `create_base_model`. Default: the one next to the tuned checkpoint.
        run: The callable that `tuned`, a module of any network, was calibrated with: LoRAs are then run on its
            held-out samples. The module's weights are replaced meanwhile, and put back.

    Returns:
        The LoRAs, each with its `report`, in the order of their ranks or sizes; `extract` gives the only one. With
        `save_to` their tensors stay in the files, which takes less memory.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    from lbm_lora.adapter import precision_name
    from lbm_lora.extraction import COVERAGES, DeltaSettings, extract_adapters, plan_extraction
    from lbm_lora.files import Outputs, together
    from lbm_lora.model.baseline import check_pair
    from lbm_lora.model.device import resolve_device
    from lbm_lora.ranks import RankOptions, rank_rule
    from lbm_lora.verbs.values import (
        checked_image_paths,
        image_files,
        image_paths,
        inputs,
        label_of,
        lora_paths,
        opened_pair,
        several,
        statistics_of,
    )

    is_calibrated = calibration is not None or calibration_images is not None
    rule = rank_rule(
        RankOptions(
            rank=rank,
            conv_rank=conv_rank,
            ranks=several(ranks),
            max_size=several(max_size),
            max_error=max_error,
            max_output_error=max_output_error,
            min_psnr=min_psnr,
            keep_energy=keep_energy,
            max_module_error=max_module_error,
        ),
        is_calibrated=is_calibrated,
        has_images=images is not None or calibration_images is not None,
    )
    if include and COVERAGES[target_coverage]:
        raise give_one("include", "target_coverage", "choose layers")
    if calibration is not None and calibration_images is not None:
        raise give_one("calibration", "calibration_images", "weight the errors")
    if images is not None and not is_calibrated:
        raise ConfigError(Option("images"), " needs ", Option("calibration"), "; for other LoRAs: lbm-lora validate.")
    dtype = _stored_dtype(save_precision, rule, is_calibrated)
    settings = DeltaSettings(
        dtype=dtype, min_diff=min_diff, device=resolve_device(device, fp64="the decomposition sums in")
    )
    lbm_path = None if config_path is None else Path(config_path)
    with ExitStack() as stack:
        network = _network(stack, tuned, run, calibration)
        sources = None if images is None else stack.enter_context(image_files(images))
        learnt = None if calibration_images is None else stack.enter_context(image_files(calibration_images))
        paths: Sequence[Path | None] = [None] * len(rule.names)
        calibration_path = label_of(calibration)
        recipe = None
        if create_base_model:
            recipe = _missing_base(base, tuned, backbone_signature, lbm_path, overwrite, progress)
        if save_to is not None:
            paths = loras = lora_paths(save_to, rule.names)
            outputs = Outputs(overwrite=overwrite).then(recipe.outputs() if recipe else Outputs())
            outputs.reads(*inputs(tuned), lbm_path, *image_paths(sources), *image_paths(learnt))
            if learnt is not None:
                calibration_path = Path(save_to).with_name(f"{Path(save_to).stem}_calibration.safetensors")
                outputs.then(_planned_statistics(calibration_path))
            outputs.then(planned_loras(loras, several(also)).reads(*inputs(base, calibration))).check()
        tried = checked_image_paths(learnt if sources is None and min_psnr is not None else sources)
        learnt_images = checked_image_paths(learnt)
        if recipe is not None:
            recipe.make(progress)
        pair = opened_pair(stack, base, tuned)
        plan = plan_extraction(
            pair[0].component(),
            pair[1].component(),
            include=(*several(include), *COVERAGES[target_coverage]),
            exclude=several(exclude),
            keep_dense=dense,
        )
        check_pair(*pair)
        norm = statistics = None
        if is_calibrated:
            from lbm_lora.calibration import keeping_unmeasured, output_norm  # only this needs the network classes

            if calibration is None:
                statistics = _measured(
                    pair[1], learnt_images, calibration_path, device, lbm_path, overwrite=overwrite, progress=progress
                )
            else:
                statistics = statistics_of(calibration)
            norm = output_norm(
                statistics,
                plan,
                path=calibration_path or Path("statistics"),
                config_path=lbm_path,
                images=tried,
                is_checked=check,
                device=settings.device,
                progress=progress,
                network=network,
            )
            plan = keeping_unmeasured(plan, statistics)
        facts = {
            "base": pair[0].path.name,
            "tuned": pair[1].path.name,
            "method": "calibrated" if is_calibrated else "plain",
            "dtype": precision_name(dtype),
            "include": several(include),
            "exclude": several(exclude),
            "target_coverage": target_coverage,
            "dense": dense,
            "min_diff": min_diff,
            **_calibration_images(statistics),
        }
        with together():
            extracted = extract_adapters(plan, rule, settings, paths, run_settings=facts, norm=norm, progress=progress)
            if norm is not None and learnt_images and refit:
                from lbm_lora.refinement.refit import refitted  # only this needs the network classes

                extracted = refitted(
                    extracted,
                    plan.pairing,
                    learnt_images,
                    settings,
                    config_path=lbm_path,
                    open_trial=norm.open_trial,
                    progress=progress,
                )
            results = [_result(one, pair, is_calibrated, min_diff, several(also), progress) for one in extracted]
        adapters = [_measured_adapter(one, result) for one, result in zip(extracted, results, strict=True)]
    return adapters, replace(results[0], further=tuple(results[1:]))


extract = one_of(extract_several)


def planned_loras(paths: Sequence[Path], also: "Sequence[ForeignFormat]") -> "Outputs":
    """Return what an extraction writes: LoRAs, their sidecars and their twins."""
    from lbm_lora.adapter.twins import plan_twins
    from lbm_lora.extraction import sidecar_of
    from lbm_lora.files import Outputs

    outputs = Outputs()
    for path in paths:
        outputs.writes(path).writes(sidecar_of(path), "the sidecar")
    plan_twins(outputs, paths, also)
    return outputs


def _stored_dtype(save_precision: "ExtractPrecision", rule: "RankRule", is_calibrated: bool) -> "torch.dtype":
    """Return the dtype of the file: by default fp16 or bits by rank with calibration, whose errors can be below the
    rounding of bf16.

    Raises:
        ConfigError: the rule chooses no bits, and the given precision needs them.
    """
    from lbm_lora.adapter import precision
    from lbm_lora.factorize import PACKED
    from lbm_lora.ranks import ErrorLimit, PsnrFloor, SizeLimits, needs_limit

    weighs_all_layers = isinstance(rule, SizeLimits | ErrorLimit | PsnrFloor)  # then bits can be chosen with the ranks
    default = ("auto" if weighs_all_layers else "fp16") if is_calibrated else "bf16"
    dtype = precision(str(save_precision or default))
    if dtype == PACKED and not weighs_all_layers:
        raise needs_limit()
    return dtype


def _network(
    stack: ExitStack, tuned: "NetworkLike", run: "NetworkRun", calibration: object
) -> "fidelity_network.Network | None":
    """Return the network to run LoRAs in, which has its own weights again when the stack is left."""
    from torch import nn

    if run is None:
        return None
    if not isinstance(tuned, nn.Module) or calibration is None:
        raise ConfigError("run needs calibration, and tuned must be the module that it runs.")
    from lbm_lora.fidelity.network import Network, kept_weights

    stack.enter_context(kept_weights(tuned))
    return Network(tuned, run)


def _missing_base(
    base: "NetworkLike",
    tuned: "NetworkLike",
    backbone_signature: str | None,
    config_path: Path | None,
    overwrite: bool,
    progress: Progress,
) -> "BaseRecipe | None":
    """Return how the base is made; None if it exists, or is no path."""
    from lbm_lora.model.make_base import missing_base
    from lbm_lora.model.resolve import config_beside

    if not isinstance(base, str | Path):
        return None
    recipe = missing_base(
        Path(base),
        backbone_signature=backbone_signature,
        config_path=config_path or (config_beside(Path(tuned)) if isinstance(tuned, str | Path) else None),
        is_made=True,
        overwrite=overwrite,
    )
    if recipe is not None:
        progress.note(f"{base} does not exist, so the base is made there.")
    elif backbone_signature is not None:
        progress.note(f"{base} exists, so no base is made from {backbone_signature}.")
    return recipe


def _planned_statistics(path: Path) -> "Outputs":
    from lbm_lora.calibration import plan_statistics  # only this needs the network classes
    from lbm_lora.files import Outputs

    return plan_statistics(Outputs(), path)


def _measured(
    tuned: "Checkpoint",
    images: Sequence[Path],
    path: Path | None,
    device: str,
    config_path: Path | None,
    *,
    overwrite: bool,
    progress: Progress,
) -> "Statistics":
    """Return the statistics of images; those in a file if it is what measuring would give. They stay there."""
    from lbm_lora.calibration import Calibration, CalibrationSettings

    how = Calibration(images=images, settings=CalibrationSettings(), device=device, config_path=config_path)
    if path is None:
        return how.measure(tuned, None, progress)
    return how.file_at(path, tuned, overwrite=overwrite, progress=progress)


def _calibration_images(statistics: "Statistics | None") -> dict[str, object]:
    """Return digests of the calibration images, by which `validate` recognises them."""
    if statistics is None or not statistics.image_digests:
        return {}
    from lbm_lora.imaging.digests import packed

    return {"calibration_images": packed(statistics.image_digests)}


def _result(
    extracted: "ExtractedAdapter",
    pair: "tuple[Checkpoint, Checkpoint]",
    is_calibrated: bool,
    min_diff: float,
    also: "Sequence[ForeignFormat]",
    progress: Progress,
) -> ExtractResult:
    """Write the sidecar and the twins of a LoRA next to it, and return the result; one in memory has neither."""
    from lbm_lora.adapter.twins import write_twins
    from lbm_lora.extraction import write_sidecar
    from lbm_lora.fidelity.weights import file_labels, weight_report
    from lbm_lora.files import written_bytes

    base, tuned = pair
    output, ledger, path = extracted.output, extracted.ledger, extracted.output.path
    labels = file_labels(base.path, tuned.path)
    report = weight_report(
        ledger,
        base=labels[0],
        tuned=labels[1],
        adapter="LoRA" if path is None else path.name,
        made_for_output=is_calibrated,
    )
    result = ExtractResult(
        adapter=path or Path("LoRA"),
        sidecar=Path(),
        nbytes=0,
        linear_rank=output.rank,
        conv_rank=output.conv_rank,
        report=report,
        notes=(_how_to_measure(base.path, tuned.path, path),) if is_calibrated and path else (),
        predicted=extracted.predicted,
        images=extracted.chosen.images if extracted.chosen else None,
        sizes=extracted.sizes,
        shrinkage=extracted.shrinkage,
    )
    if path is None:
        return result
    sidecar = write_sidecar(path, output, ledger, base=base.path.name, min_diff=min_diff)
    return replace(result, sidecar=sidecar, nbytes=written_bytes(path), twins=write_twins(path, also, progress))


def _how_to_measure(base: Path, tuned: Path, lora: Path) -> str:
    """Return the command line that measures a LoRA's outputs."""
    from lbm_lora.report.wording import OF_WEIGHTS_ALONE

    return (
        f"{OF_WEIGHTS_ALONE} To measure its output: lbm-lora validate --base_model_path {base} "
        f"--tuned_model_path {tuned} --lora_path {lora} --images FOLDER"
    )


def _measured_adapter(extracted: "ExtractedAdapter", result: ExtractResult) -> "MeasuredAdapter":
    from lbm_lora.adapter import load_adapter
    from lbm_lora.files import current
    from lbm_lora.verbs.adapters import MeasuredAdapter, contents

    adapter = extracted.adapter or load_adapter(current(result.adapter))
    return MeasuredAdapter(
        **contents(adapter),
        report=result.report,
        predicted=result.predicted,
        trial=result.images,
        sizes=result.sizes,
        shrinkage=result.shrinkage,
    )
