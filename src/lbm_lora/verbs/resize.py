"""Give a LoRA other ranks: the verb `resize`."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lbm_lora.errors import AdapterError, ConfigError, Option
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import (
    ADVANCED,
    Base,
    Calibration,
    ConfigPath,
    ConvRank,
    Device,
    Images,
    KeepEnergy,
    Lora,
    LoraAlphaIs,
    LoraPrecision,
    MaxModuleError,
    MaxSizes,
    Named,
    Output,
    Overwrite,
    Pattern,
    Rank,
    Ranks,
    Several,
)
from lbm_lora.verbs.verb import EVERYDAY, one_of, verb

if TYPE_CHECKING:
    from lbm_lora.adapter import Adapter, Status
    from lbm_lora.calibration import Statistics
    from lbm_lora.combine import Resized
    from lbm_lora.naming import ParamName
    from lbm_lora.ranks import Prediction, RankRule, Trial, TrialImages
    from lbm_lora.verbs.adapters import ResizedAdapter


@dataclass(frozen=True, kw_only=True)
class ResizedLayer:
    """One parameter of the LoRA, before and after."""

    name: str
    status: "Status"
    reason: str
    rank_before: int | None
    """Rank in the LoRA that was resized; None for a dense delta."""
    rank: int | None
    relative_error: float
    """Error of the weights against the LoRA that was resized, as stored."""


@dataclass(frozen=True, kw_only=True)
class ResizeResult:
    """A resized LoRA and its error; of several, the first."""

    source: str
    """The LoRA that was resized: its file's name."""
    adapter: Path
    nbytes: int
    nbytes_before: int
    linear_rank: int
    """Highest rank of linear layers."""
    conv_rank: int
    """Highest rank of conv layers."""
    linear_rank_before: int
    conv_rank_before: int
    resize_error: float
    """Relative error of the weights against the LoRA that was resized, as stored, with all that was left out."""
    layers: tuple[ResizedLayer, ...]
    left_out: tuple[str, ...]
    """Parameters of the LoRA that are not in this one: by a pattern, or not worth their bytes."""
    notes: tuple[str, ...]
    predicted: "Prediction"
    """Expected error against the LoRA that was resized; measured if it was run at check points."""
    images: "TrialImages | None" = None
    """Its images against those of the LoRA that was resized."""
    sizes: "tuple[Prediction, ...]" = ()
    """Predictions for other sizes."""
    further: tuple["ResizeResult", ...] = ()
    """LoRAs of the other ranks or sizes."""


def _text(result: ResizeResult, verbose: bool) -> str:
    """Return ranks, bytes and errors before and after, as a table; predicted and measured errors, and files."""
    from lbm_lora.report.wording import plural, printable
    from lbm_lora.verbs.lines import file_lines, image_lines, paragraphs, prediction_lines

    every = [result, *result.further]
    head = printable(f"{plural(len(every), 'LoRA')} of {result.source}, with the error against it")
    details = (
        ()
        if result.further
        else (
            prediction_lines(result.predicted, result.sizes),
            image_lines(result.images, "those of the LoRA before"),
        )
    )
    return paragraphs(
        *(f"{one.adapter.name}\n{_layers(one)}" for one in every if verbose),
        "\n".join([f"{head}:", *_rows(every)]),
        "\n".join(f"{one.adapter.name}: {note}" if result.further else note for one in every for note in one.notes),
        *details,
        file_lines(*(one.adapter for one in every)),
    )


def _rows(every: Sequence[ResizeResult]) -> list[str]:
    from lbm_lora.report.table import numbers, table, words
    from lbm_lora.report.wording import NOTHING, decibel, megabytes, percent

    first = every[0]
    has_output = first.predicted.of == "output"
    heads = ["rank up to", "conv rank up to", "bytes", "error of weights", *(["of output"] if has_output else [])]
    heads += ["PSNR", "worst"] if first.images is not None else []
    before = [f"{first.linear_rank_before:,}", f"{first.conv_rank_before:,}", megabytes(first.nbytes_before)]
    rows = [[*before, *([NOTHING] * (len(heads) - len(before))), first.source]]
    for one in every:
        row = [f"{one.linear_rank:,}", f"{one.conv_rank:,}", megabytes(one.nbytes), percent(one.resize_error)]
        row += [percent(one.predicted.error)] if has_output else []
        row += [decibel(value) for value in (one.images.mean_psnr, one.images.worst_psnr)] if one.images else []
        rows.append([*row, one.adapter.name])
    return table([*map(numbers, heads), words("file")], rows)


def _layers(result: ResizeResult) -> str:
    from lbm_lora.report.table import numbers, table, words
    from lbm_lora.report.wording import NOTHING, percent

    columns = [words("layer"), words("kept as"), numbers("rank before"), numbers("rank"), numbers("error")]
    rows = [
        (one.name, one.status, str(one.rank_before or NOTHING), str(one.rank or NOTHING), percent(one.relative_error))
        for one in result.layers
    ]
    return "\n".join(table(columns, rows))


@verb(
    "give a LoRA other ranks, or make it fit a file size",
    group=EVERYDAY,
    examples=(
        "lbm-lora resize --lora_path lora.safetensors --rank 16 --save_to small.safetensors",
        "lbm-lora resize --lora_path lora.safetensors --max_size 50MB 20MB 8MB --calibration statistics.safetensors "
        "--save_to small.safetensors",
    ),
    text=_text,
)
def resize_several(
    lora: Lora,
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
    base: Base | None = None,
    images: Images | None = None,
    include: Annotated[Several[Pattern], ADVANCED] = (),
    exclude: Annotated[Several[Pattern], ADVANCED] = (),
    dense: Annotated[bool, ADVANCED] = True,
    save_precision: Annotated[LoraPrecision, ADVANCED] = None,
    lora_alpha_is: LoraAlphaIs = "auto",
    allow_other_base: Annotated[bool, ADVANCED] = False,
    device: Device = "auto",
    config_path: ConfigPath = None,
    progress: Progress = SILENT,
) -> "tuple[list[ResizedAdapter], ResizeResult]":
    """Give a LoRA other ranks, from its factors alone: the best approximation of what it was. Choose the ranks with at
    most one of `ranks`, `max_size`, `max_error`, `max_output_error`, `min_psnr`, `keep_energy` and `max_module_error`,
    else with `rank` and `conv_rank`. Layers that have no more ranks are kept as they are.

    Args:
        lora: LoRA to resize.
        max_error: Write the smallest file whose total relative error of the weights, against the LoRA as it was, is at
            most this: above 0, up to 1 (0.05: 5 %). Not with `calibration`.
        max_output_error: Write the smallest file whose relative error of the denoiser's output, against the LoRA as it
            was, is at most this: above 0, up to 10 (0.05: 5 %). Needs `calibration`.
        min_psnr: Write the smallest file with which each of `images` reaches this PSNR (dB) to the one-step image of
            the LoRA as it was. Needs `images` and `base`.
        save_to: Write the LoRA here: a .safetensors file.
        calibration: Minimise the error of the output instead of the weights, with these statistics from `lbm-lora
            calibrate`. Measure the tuned model that the LoRA was extracted from; for a trained LoRA, its base with the
            LoRA fused.
        base: Base of the LoRA, to run resized LoRAs on: on `images`, and with `calibration` at its check points, which
            corrects the predicted error.
        images: Run resized LoRAs on these images and report their PSNR to the one-step images of the LoRA as it was.
        include: Keep only tensors that match one of these patterns: part of a name, a glob, or re:REGEX. Default: all.
        exclude: Leave out tensors that match one of these patterns. Takes precedence over `include`.
        dense: Keep the dense deltas of biases and norms.
        save_precision: Store the LoRA in this precision. Default: that of the file. int8 fits twice the ranks into a
            file, which only lbm-lora can read.
        lora_alpha_is: Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.
        allow_other_base: Continue even if the LoRA was made from another base than `base`.
        device: Run resized LoRAs on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N.
        config_path: Read LBM's config.yaml from here, for a base that has none in it or next to it.

    Returns:
        The LoRAs in the order of their ranks or sizes, each with its error against the given one; `resize` gives the
        only one.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    from lbm_lora.adapter import common_dtype, precision
    from lbm_lora.apply import check_base, check_fit
    from lbm_lora.checkpoint import dtype_name
    from lbm_lora.combine import resize_adapter
    from lbm_lora.files import Outputs, together
    from lbm_lora.model.device import resolve_device
    from lbm_lora.naming import leaf_of, module_of
    from lbm_lora.ranks import RankOptions, rank_rule
    from lbm_lora.verbs.values import (
        adapter_of,
        checked_image_paths,
        image_files,
        image_paths,
        inputs,
        label_of,
        lora_paths,
        opened_base,
        several,
        statistics_of,
    )

    _check_images(base, images, calibration, min_psnr)
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
        is_calibrated=calibration is not None,
        has_images=images is not None,
        measure=Option("calibration", "STATISTICS"),
    )
    lbm_path = None if config_path is None else Path(config_path)
    with ExitStack() as stack:
        sources = None if images is None else stack.enter_context(image_files(images))
        paths: Sequence[Path | None] = [None] * len(rule.names)
        if save_to is not None:
            paths = loras = lora_paths(save_to, rule.names)
            outputs = Outputs(overwrite=overwrite)
            outputs.reads(*inputs(lora, base, calibration), lbm_path, *image_paths(sources))
            for path in loras:
                outputs.writes(path)
            outputs.check()
        tried = checked_image_paths(sources)
        opened = opened_base(stack, base)
        component = None if opened is None else opened.component()
        adapter = adapter_of(lora, lora_alpha_is, base=component)
        dropped = _dropped(adapter, include, exclude, dense)
        dtype = precision(str(save_precision)) if save_precision else common_dtype([adapter])
        if component is not None:
            check_fit(adapter, component.shapes, allow_unmatched=True)
            check_base(adapter, component, allow_other_base=allow_other_base)
        norm = statistics = None
        if calibration is not None:
            from lbm_lora.calibration import lora_norm  # only this needs the network classes

            statistics = statistics_of(calibration)
            weights = [name for name in adapter.params if len(adapter.shape_of(name) or ()) in (2, 4)]
            ranked = [module_of(name) for name in weights if name not in dropped and leaf_of(name) == "weight"]
            norm = lora_norm(statistics, adapter, ranked, path=label_of(calibration) or Path("statistics"))

        def open_trial() -> "Trial | None":
            """The network in which LoRAs are compared with the one that is resized."""
            checks = statistics.checks if statistics is not None else ()
            if opened is None or component is None or not (checks or tried):
                return None
            from lbm_lora.fidelity.trial import LoraTrial  # only this needs the network classes

            return LoraTrial(
                opened,
                component,
                checks=checks,
                images=tried,
                config_path=lbm_path,
                device=resolve_device(device),
                progress=progress,
                wanted=adapter.stored(),
            )

        with together():
            resized = resize_adapter(
                adapter,
                rule,
                paths,
                dtype=dtype,
                left_out=dropped,
                settings={
                    "resized_from": adapter.path.name if adapter.path else adapter.label,
                    "dtype": dtype_name(dtype),
                    "include": tuple(include),
                    "exclude": tuple(exclude),
                    "dense": dense,
                    "calibration": norm.name if norm else None,
                    **_calibration_facts(adapter, statistics),
                },
                norm=norm,
                open_trial=open_trial,
                progress=progress,
            )
            results = [_result(adapter, rule, path, one) for path, one in zip(paths, resized, strict=True)]
    adapters = [_adapter(path, one, result) for path, one, result in zip(paths, resized, results, strict=True)]
    return adapters, replace(results[0], further=tuple(results[1:]))


resize = one_of(resize_several)


def _check_images(
    base: object | None, images: object | None, calibration: object | None, min_psnr: float | None
) -> None:
    """Refuse options that do not go together, before a file is opened."""
    if min_psnr is not None and images is None:
        raise ConfigError(Option("min_psnr"), " needs images: add ", Option("images", "FOLDER"), ".")
    if images is not None and base is None:
        raise ConfigError(
            Option("images"), " needs a base to run LoRAs on: add ", Option("base_model_path", "BASE"), "."
        )
    if base is not None and images is None and calibration is None:
        raise ConfigError(
            Option("base_model_path"), " has no effect unless LoRAs are run. Add ", Option("images", "FOLDER"), " or ",
            Option("calibration", "STATISTICS"), ", or omit it.",
        )  # fmt: skip


def _dropped(adapter: "Adapter", include: Several[str], exclude: Several[str], dense: bool) -> "dict[ParamName, str]":
    """Return the params that are not kept, with the reason.

    Raises:
        PatternError: a pattern matches nothing.
        AdapterError: nothing remains.
    """
    from lbm_lora.naming import leaf_of, left_out

    dropped = left_out(adapter.params, include=tuple(include), exclude=tuple(exclude), prefix=adapter.prefix)
    if not dense:
        others = [name for name in adapter.dense if leaf_of(name) != "weight" or adapter.dense[name].dim() < 2]
        dropped |= {name: "dense deltas are switched off" for name in others if name not in dropped}
    if len(dropped) == len(adapter):
        raise AdapterError(
            Option("include"), " and ", Option("exclude"),
            f" leave out all {len(adapter)} deltas of {adapter.label}. Change one of them.",
        )  # fmt: skip
    return dropped


def _calibration_facts(adapter: "Adapter", statistics: "Statistics | None") -> Mapping[str, object]:
    """Return what the file records of the statistics."""
    from lbm_lora.adapter.metadata import SETTINGS_KEY, parsed
    from lbm_lora.imaging.digests import packed, unpacked

    if statistics is None:
        return {}
    facts: dict[str, object] = {"method": "calibrated"}
    if statistics.image_digests:
        earlier = unpacked(parsed(adapter.metadata.facts, SETTINGS_KEY).get("calibration_images"))
        facts["calibration_images"] = packed(dict.fromkeys([*statistics.image_digests, *sorted(earlier)]))
    return facts


def _result(adapter: "Adapter", rule: "RankRule", path: Path | None, resized: "Resized") -> ResizeResult:
    from lbm_lora.adapter import Status
    from lbm_lora.files import written_bytes
    from lbm_lora.naming import leaf_of, module_of

    ranks = {name: module.rank for name, module in adapter.modules.items()}
    layers = tuple(
        ResizedLayer(
            name=row.name,
            status=row.status,
            reason=row.reason,
            rank_before=ranks.get(module_of(row.name)) if leaf_of(row.name) == "weight" else None,
            rank=row.rank,
            relative_error=row.measure.relative_error,
        )
        for row in resized.ledger
    )
    return ResizeResult(
        source=adapter.path.name if adapter.path else adapter.label,
        adapter=path or Path("LoRA.safetensors"),
        nbytes=0 if path is None else written_bytes(path),
        nbytes_before=adapter.nbytes if adapter.path is None else adapter.path.stat().st_size,
        linear_rank=resized.rank,
        conv_rank=resized.conv_rank,
        linear_rank_before=_highest(adapter, 2),
        conv_rank_before=_highest(adapter, 4),
        resize_error=resized.ledger.total().relative_error,
        layers=layers,
        left_out=tuple(row.name for row in resized.ledger.of(Status.EXCLUDED)),
        notes=_notes(adapter, rule, resized),
        predicted=resized.predicted,
        images=resized.chosen.images,
        sizes=resized.sizes,
    )


def _notes(adapter: "Adapter", rule: "RankRule", resized: "Resized") -> tuple[str, ...]:
    """Return what a user should know of a resized LoRA, one sentence each."""
    from lbm_lora.ranks import FixedRanks
    from lbm_lora.report.wording import plural

    notes = [
        f"Left out {plural(count, 'delta')}: {reason}." for reason, count in resized.ledger.excluded_reasons().items()
    ]
    if resized.kept and isinstance(rule, FixedRanks):
        notes.append(
            f"{plural(resized.kept, 'layer')} of {len(adapter.modules):,} had no more ranks than requested and "
            f"{'is' if resized.kept == 1 else 'are'} kept as {'it is' if resized.kept == 1 else 'they are'}."
        )
    if adapter.file_format != "native":
        back = f"`lbm-lora convert --to {adapter.file_format}` converts it back"
        notes.append(f"The result is in lbm-lora's own format; {back}.")
    return tuple(notes)


def _highest(adapter: "Adapter", dims: int) -> int:
    return max((module.rank for module in adapter.modules.values() if len(module.shape) == dims), default=0)


def _adapter(path: Path | None, resized: "Resized", result: ResizeResult) -> "ResizedAdapter":
    from lbm_lora.adapter import load_adapter
    from lbm_lora.verbs.adapters import ResizedAdapter, contents

    made = resized.adapter if path is None else load_adapter(path)
    assert made is not None
    return ResizedAdapter(
        **contents(made),
        resize_error=result.resize_error,
        left_out=result.left_out,
        predicted=result.predicted,
        trial=result.images,
        sizes=result.sizes,
        notes=result.notes,
    )
