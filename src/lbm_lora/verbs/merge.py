"""Merge LoRAs into one: the verb `merge`."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval

from lbm_lora.choices import MergeMethod
from lbm_lora.errors import CheckpointError, ConfigError, Option, listing, plural
from lbm_lora.progress import SILENT, Progress, warn
from lbm_lora.verbs.options import (
    ADVANCED,
    Base,
    Calibration,
    ConfigPath,
    Count,
    FlagName,
    Images,
    Lora,
    LoraAlphaIs,
    LoraPrecision,
    Named,
    Output,
    Overwrite,
    Scale,
    Seed,
    Several,
    Tuned,
)
from lbm_lora.verbs.verb import verb

if TYPE_CHECKING:
    from lbm_lora.adapter import Adapter, Ledger, LoraScale
    from lbm_lora.calibration import Statistics
    from lbm_lora.checkpoint import Checkpoint
    from lbm_lora.combine import MergedBase
    from lbm_lora.fidelity.fitted_scales import FittedScales
    from lbm_lora.ranks import OutputNorm
    from lbm_lora.verbs.adapters import CombinedAdapter

    Scaled = Sequence[tuple[Adapter, LoraScale]]


@dataclass(frozen=True, kw_only=True)
class MergedLora:
    """One of the merged LoRAs."""

    path: Path
    """Name of its file; `LoRA 1` and so on if it has none."""
    lora_scale: float | str
    """A number, or the text of numbers by layer."""
    modules: int
    """Its lora modules."""
    dense: int
    """Its dense deltas."""


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """Written file, and what it holds."""

    adapter: Path
    nbytes: int
    loras: tuple[MergedLora, ...]
    method: str
    modules: int
    """Lora modules in the file."""
    dense: int
    """Dense deltas in the file."""
    left_out: int
    """Deltas that are zero at these scales, or not worth their bytes."""
    ranks: tuple[int, int]
    """Lowest and highest rank of the lora modules; zeros if there are none."""
    relative_error: float
    """Of all deltas as stored, relative to the merged deltas before their ranks were limited and rounded."""
    chain: tuple[str, ...]
    """LoRAs of a chain base -> tuned -> further tuned, in this order; empty if all have one base."""
    fit: "FittedScales | None"
    """How the scales were fitted, with `images`."""
    seconds: float


def _text(result: MergeResult, _: bool) -> str:
    """Return the LoRAs with their scales, the merged one and its error, and of a chain its base."""
    from lbm_lora.report.table import numbers, table, words
    from lbm_lora.report.wording import percent, plural
    from lbm_lora.verbs.lines import file_lines, paragraphs

    columns = [words("LoRA"), numbers("scale"), numbers("lora modules"), numbers("dense deltas")]
    rows = [[one.path.name, f"{one.lora_scale}", f"{one.modules:,}", f"{one.dense:,}"] for one in result.loras]
    lowest, highest = result.ranks
    span = "" if not highest else f" of rank {highest}" if lowest == highest else f" of rank {lowest} to {highest}"
    how = "Their sum" if result.method == "sum" else f"Merged by {result.method}"
    lines = [
        f"{how}: {plural(result.modules, 'lora module')}{span}, {plural(result.dense, 'dense delta')}; "
        f"{result.seconds:.1f} s.",
        f"Relative error of what is stored: {percent(result.relative_error)}.",
    ]
    if result.left_out:
        lines.append(f"{plural(result.left_out, 'delta')} left out: zero at these scales, or not worth the bytes.")
    return paragraphs(
        "\n".join([f"Merged {plural(len(result.loras), 'LoRA')}", *table(columns, rows)]),
        "\n".join(lines),
        _fit(result),
        _chain(result),
        file_lines(result.adapter),
    )


def _fit(result: MergeResult) -> str:
    """Return what fitting the scales gained."""
    from lbm_lora.report.wording import percent, plural

    if result.fit is None:
        return ""
    before, after = result.fit.before, result.fit.after
    pairs = ((before.typical, after.typical), (before.worst, after.worst))
    typical, worst = (tuple(map(percent, pair)) for pair in pairs)
    return (
        f"Scales fitted on {plural(result.fit.images, 'image')}. Error of the denoiser's output: typical "
        f"{typical[0]} -> {typical[1]}, worst {worst[0]} -> {worst[1]}."
    )


def _chain(result: MergeResult) -> str:
    """Say what a merged chain is relative to."""
    if not result.chain:
        return ""
    first, *further = result.chain
    return (
        f"It is for the base of {first}: {', then '.join(further)} was made on the tuned model that {first} leads to. "
        "Their sum comes as close to that model as the extraction does."
    )


@verb(
    "merge LoRAs into one",
    examples=(
        "lbm-lora merge --lora_path a.safetensors b.safetensors --lora_scale 1 0.5 --save_to merged.safetensors",
        "lbm-lora merge --lora_path relight.safetensors more.safetensors --save_to one.safetensors --max_size 100MB",
    ),
    text=_text,
)
def merge(
    loras: Annotated[Several[Lora], FlagName("lora_path")],
    *,
    overwrite: Overwrite = False,
    save_to: Output = None,
    lora_scale: Several[Scale] = (1.0,),
    rank: Count | None = None,
    conv_rank: Count | None = None,
    max_size: Annotated[str | None, Named("SIZE")] = None,
    max_error: Annotated[float | None, Named("SHARE")] = None,
    max_output_error: Annotated[float | None, Named("SHARE")] = None,
    exact: bool = False,
    method: MergeMethod = "sum",
    density: Annotated[float | None, Named("SHARE"), Interval(ge=0, le=1), ADVANCED] = None,
    seed: Annotated[Seed, ADVANCED] = 0,
    calibration: Calibration = None,
    images: Images | None = None,
    base: Base | None = None,
    tuned: Tuned | None = None,
    save_precision: Annotated[LoraPrecision, ADVANCED] = None,
    allow_other_base: Annotated[bool, ADVANCED] = False,
    lora_alpha_is: LoraAlphaIs = "auto",
    device: Annotated[str, Named("DEVICE"), ADVANCED] = "auto",
    config_path: ConfigPath = None,
    progress: Progress = SILENT,
) -> "tuple[CombinedAdapter, MergeResult]":
    """Merge LoRAs into one that does what all of them do together, from their files alone. Without a limit nothing
    is lost but the rounding of `save_precision`. A LoRA made on a tuned model and the extraction of that model
    merge into one LoRA for the base.

    Args:
        loras: LoRA files, in any order.
        save_to: Write the LoRA here: a .safetensors file.
        lora_scale: Scale of each LoRA, or one for all: a LoRA merged at 0.5 acts as it does alone at 0.5; may be
            negative. By layer: 0.8,down_blocks=0.5,attn1=0.
        rank: Highest rank of linear layers. Default: as high as the LoRAs need together.
        conv_rank: Highest rank of conv layers. Default: half of `rank`.
        max_size: Choose the ranks of all layers together: the best LoRA that a file of this size can hold (200MB,
            800KB).
        max_error: Write the smallest file whose total relative error is at most this: above 0, up to 1 (0.02: 2 %).
        max_output_error: Write the smallest file whose relative error of the denoiser's output is at most this: above
            0, up to 10 (0.05: 5 %). Needs `calibration`.
        exact: Put the factors side by side, in fp32, without a decomposition: the ranks add up.
        method: Add the LoRAs up (sum), or let them interfere less: ties keeps the largest entries and the majority
            sign, dare drops entries at random, knots is ties in the LoRAs' common directions, core makes their
            directions orthogonal.
        density: Share of the entries that ties, dare and knots keep of each LoRA. Default: 0.5.
        seed: Seed for the entries that dare drops.
        calibration: Minimise the error of the output instead of the weights, with these statistics from `lbm-lora
            calibrate`. Needs `rank`, `max_size` or `max_output_error`.
        images: First fit the scales on these images, so that base + LoRAs comes closest to the tuned model's output.
            Needs `base` and `tuned`.
        base: Checkpoint that the LoRAs were made for. Only for fitting the scales.
        tuned: Fine-tuned checkpoint to come close to. Only for fitting the scales.
        save_precision: Store the LoRA in this precision. Default: that of the LoRAs; float where they differ, and for
            `exact`.
        allow_other_base: Continue even if the LoRAs were made from different bases. The result counts as made from the
            first one's.
        lora_alpha_is: Meaning of alpha in the LoRA files: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.
        device: Run the networks on this device to fit the scales: auto (CUDA if available, else the CPU), cpu, cuda or
            cuda:N.
        config_path: Read LBM's config.yaml from here, to fit the scales of checkpoints that have none in them or next
            to them.

    Returns:
        The LoRA, with its error and the scales of the given ones.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    from lbm_lora.adapter import Status, load_adapter
    from lbm_lora.adapter.twins import check_form
    from lbm_lora.apply import scales_for
    from lbm_lora.combine import MergeOptions, Summand, merge_adapters, merge_rule, merged_base
    from lbm_lora.files import Outputs, written_bytes
    from lbm_lora.verbs.adapters import CombinedAdapter, contents
    from lbm_lora.verbs.values import (
        adapter_of,
        checked_image_paths,
        image_files,
        image_paths,
        inputs,
        label_of,
        listed,
        opened_pair,
        path_of,
        several,
        statistics_of,
    )

    start = time.perf_counter()
    given = listed(loras)
    options = MergeOptions(
        rank=rank,
        conv_rank=conv_rank,
        max_size=max_size,
        max_error=max_error,
        max_output_error=max_output_error,
        exact=exact,
        method=method,
        density=density,
        seed=seed,
        calibration=label_of(calibration),
        save_precision=None if save_precision is None else str(save_precision),
    )
    rule = merge_rule(options)
    _check_images(method, images=images, base=base, tuned=tuned)
    with ExitStack() as stack:
        sources = None if images is None else stack.enter_context(image_files(images))
        if save_to is not None:
            check_form(Path(save_to))
            outputs = Outputs(overwrite=overwrite).reads(*inputs(*given, calibration, base, tuned, config_path))
            outputs.reads(*image_paths(sources)).writes(Path(save_to)).check()
        fitting_images = checked_image_paths(sources)
        if not given:
            raise ConfigError(
                Option("lora_path"), " names no file, so there is nothing to merge. Give two LoRAs or more."
            )
        adapters = [adapter_of(one, lora_alpha_is) for one in given]
        scaled = list(zip(adapters, scales_for(len(given), several(lora_scale)), strict=True))
        origin, fit = merged_base([Summand.of(*one) for one in scaled], allow_other_base=allow_other_base), None
        if base is not None and tuned is not None:
            pair = opened_pair(stack, base, tuned)
            scaled, fit = _fitted(
                scaled,
                origin,
                *pair,
                fitting_images,
                config_path=None if config_path is None else Path(config_path),
                device=device,
                allow_other_base=allow_other_base,
                progress=progress,
            )
            origin = replace(origin, tuned="")
        norm = None
        if calibration is not None:
            norm = _norm(options.calibration or Path("statistics"), statistics_of(calibration), scaled)
        path = None if save_to is None else Path(save_to)
        merged = merge_adapters(options, rule, scaled, origin, path, norm=norm, progress=progress)
    result = MergeResult(
        adapter=path or Path("LoRA.safetensors"),
        nbytes=0 if path is None else written_bytes(path),
        loras=tuple(
            MergedLora(
                path=path_of(one, f"LoRA {number}"),
                lora_scale=scale.plain,
                modules=len(lora.modules),
                dense=len(lora.dense),
            )
            for number, (one, (lora, scale)) in enumerate(zip(given, scaled, strict=True), 1)
        ),
        method=method,
        modules=len(merged.ledger.of(Status.LORA)),
        dense=len(merged.ledger.of(Status.DENSE)),
        left_out=len(merged.ledger.of(Status.UNCHANGED, Status.EXCLUDED)),
        ranks=_span(merged.ledger),
        relative_error=merged.ledger.total().relative_error,
        chain=origin.labels,
        fit=fit,
        seconds=time.perf_counter() - start,
    )
    made = load_adapter(path) if merged.adapter is None and path is not None else merged.adapter
    assert made is not None
    scales = tuple(scale.text for _, scale in scaled)
    return CombinedAdapter(**contents(made), relative_error=result.relative_error, scales=scales), result


def _check_images(method: str, *, images: object, base: object, tuned: object) -> None:
    """Refuse options of fitted scales that do not go together."""
    for option, value in (("base_model_path", base), ("tuned_model_path", tuned)):
        if value is not None and images is None:
            raise ConfigError(Option(option), " is for fitting the scales: add ", Option("images", "FOLDER"), ".")
        if images is not None and value is None:
            raise ConfigError(Option("images"), " fits the scales to outputs: add ", Option(option), ".")
    if images is not None and method != "sum":
        raise ConfigError(Option("images"), " fits the scales of a sum, not of ", Option("method"), f" {method}.")


def _fitted(
    loras: "Scaled",
    origin: "MergedBase",
    base: "Checkpoint",
    tuned: "Checkpoint",
    images: Sequence[Path],
    *,
    config_path: Path | None,
    device: str,
    allow_other_base: bool,
    progress: Progress,
) -> "tuple[list[tuple[Adapter, LoraScale]], FittedScales]":
    """Return the LoRAs with the scales that fit the tuned model's outputs.

    Raises:
        WrongBaseError: they were made from another base.
        InputError: a LoRA does not fit a model, or a model cannot be built.
    """
    from lbm_lora.adapter import AdapterMetadata
    from lbm_lora.apply import check_base
    from lbm_lora.combine import Summand
    from lbm_lora.fidelity.fitted_scales import fit_scales  # only this needs the network classes
    from lbm_lora.model.device import resolve_device

    metadata = AdapterMetadata(base_fingerprint=origin.fingerprint, base_tensors=origin.tensors)
    check_base(replace(loras[0][0], metadata=metadata), base.component(), allow_other_base=allow_other_base)
    fitted = fit_scales(
        base,
        tuned,
        [Summand.of(*one).scaled() for one in loras],
        images,
        config_path=config_path,
        device=resolve_device(device),
        progress=progress,
    )
    return [(lora, scale.times(factor)) for (lora, scale), factor in zip(loras, fitted.factors, strict=True)], fitted


def _norm(path: Path, statistics: "Statistics", loras: "Scaled") -> "OutputNorm":
    """Return the norm that weighs errors by their cost in the output of the model that was measured.

    Raises:
        CheckpointError: the statistics lack a module of the LoRAs.
    """
    from lbm_lora.ranks import OutputNorm

    missing = sorted({module for lora, _ in loras for module in lora.modules if module not in statistics})
    if missing:
        raise CheckpointError(
            f"{path} has no statistics for {plural(len(missing), 'module')} of the LoRAs: "
            f"{listing(missing, limit=3)}. Measure the model that the LoRAs are for: lbm-lora calibrate."
        )
    tuned = {lora.metadata.tuned_fingerprint for lora, _ in loras} - {""}
    if tuned and statistics.origin.tuned not in tuned:
        warn(
            f"{path} was measured on another model than those that the LoRAs were extracted from: errors are weighed "
            "by what that model's output is sensitive to."
        )
    return OutputNorm(
        name=path.name,
        weights_of=statistics.__getitem__,
        vector_moment_of=statistics.vectors.get,
        energy=statistics.output_energy,
    )


def _span(ledger: "Ledger") -> tuple[int, int]:
    from lbm_lora.adapter import Status

    ranks = [row.rank or 0 for row in ledger.of(Status.LORA)]
    return (min(ranks), max(ranks)) if ranks else (0, 0)
