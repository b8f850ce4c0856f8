"""The files that a command would write, and their sizes as far as headers tell them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbm_lora.adapter import precision
from lbm_lora.adapter.adapter_file import files_of
from lbm_lora.calibration import PartialFile
from lbm_lora.checkpoint import Checkpoint, dtype_of
from lbm_lora.configs.base import BaseConfig
from lbm_lora.configs.calibrate import CalibrateConfig
from lbm_lora.configs.compress import CompressConfig
from lbm_lora.configs.convert import ConvertConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.infer import InferConfig
from lbm_lora.configs.infer_shards import InferShardsConfig
from lbm_lora.configs.merge import MergeConfig
from lbm_lora.configs.refine import RefineConfig
from lbm_lora.configs.resize import ResizeConfig
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.configs.values import ForeignFormat
from lbm_lora.extraction import Action, sidecar_of
from lbm_lora.factorize import has_matrix_view, matrix_shape, rank_bound
from lbm_lora.files import is_ours as is_source_copy
from lbm_lora.imaging.encoded import encoded_size
from lbm_lora.missing_path import home_path
from lbm_lora.naming import leaf_of
from lbm_lora.ranks import FixedRanks, RankRule, SizeLimits, parse_nbytes
from lbm_lora.regular_file import check_regular
from lbm_lora.workflows import extract, extract_plan, infer, refine, resize, train
from lbm_lora.workflows.base import base_paths, makes_base
from lbm_lora.workflows.compress_files import CompressFiles, size_of
from lbm_lora.workflows.files_beside import twins_of
from lbm_lora.workflows.needs.inputs import Inputs
from lbm_lora.workflows.needs.memory import LBM_PARAMETERS
from lbm_lora.workflows.needs.sizes import Delta, lora_nbytes, statistics_nbytes, sums_nbytes
from lbm_lora.workflows.validate_files import layer_names_file, report_folder, with_report

_SIDECAR = 1_000
_LEDGER = 500_000


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file or folder to be written.

    Attributes:
        nbytes: expected size; None if it is not known before the run.
        is_folder: whether it is a folder.
        is_temporary: whether an interrupted run resumes from it, and a complete one removes it.
    """

    path: Path
    nbytes: int | None
    is_folder: bool = False
    is_temporary: bool = False


def outputs_of(command: str, config: Any, inputs: Inputs) -> list[Output]:
    """Return what a command would write, in the order of writing.

    Args:
        command: name of its module in `lbm_lora.workflows`.

    Raises:
        InputError: names or shapes of its inputs do not fit, so that it would write nothing.
    """
    return _OUTPUTS[command](config, inputs) if command in _OUTPUTS else []


def _extract(config: ExtractConfig, inputs: Inputs) -> list[Output]:
    rule = extract.rule_of(config)
    outputs: list[Output] = []
    if config.create_base_model:
        outputs += _missing_base(config.base_model_path, config.backbone_signature, inputs, is_made=True)
    if config.calibration_images is not None:
        outputs += _calibrate(extract_plan.calibration_of(config), inputs)
    for at, path in enumerate(extract_plan.lora_paths(config.save_to, rule)):
        outputs += _extracted(path, config.also, _extracted_nbytes(config, rule, at, inputs))
    return outputs


def _extracted(path: Path, also: Sequence[ForeignFormat], nbytes: int | None) -> list[Output]:
    """A LoRA of `extract`, its sidecar and its twins."""
    sidecar = Output(path=sidecar_of(path), nbytes=_SIDECAR)
    return [Output(path=path, nbytes=nbytes), sidecar, *_twins(path, also, nbytes)]


def _extracted_nbytes(config: ExtractConfig, rule: RankRule, at: int, inputs: Inputs) -> int | None:
    """Bytes of the LoRA of that number; None if its ranks are found by an error."""
    tuned, base = inputs.checkpoints.get("tuned_model_path"), inputs.checkpoints.get("base_model_path")
    if isinstance(rule, SizeLimits):
        return rule.nbytes[at]
    if not isinstance(rule, FixedRanks) or tuned is None:
        return None
    dtype = extract.stored_dtype(config, rule)
    return lora_nbytes(tuned.component(), rule.ranks[at], dtype, _planned(config, tuned, base))


def _planned(config: ExtractConfig, tuned: Checkpoint, base: Checkpoint | None) -> list[Delta]:
    """The deltas that an extraction stores: of the pair, or of the tuned checkpoint where the base is not there yet."""
    plan = extract.plan_of(config, base or tuned, tuned)
    kept = (Action.DECOMPOSE, Action.KEEP_DENSE)
    return [(one.name, one.shape, one.action is Action.DECOMPOSE) for one in plan.items if one.action in kept]


def _compress(config: CompressConfig, inputs: Inputs) -> list[Output]:
    files = CompressFiles.of(config)
    tuned = inputs.checkpoints.get("tuned")
    outputs = [Output(path=files.folder, nbytes=None, is_folder=True)]
    if config.base_model_path is None and files.found_base(config.tuned) is None:
        outputs += _base(files.base, BaseConfig.torch_dtype, inputs)
    if config.calibration is None:
        outputs += _statistics(files.statistics, tuned)
    nbytes = sum(spec.nbytes for spec in tuned.specs.values()) if tuned else None
    size = parse_nbytes(size_of(config, nbytes or 0), "size") if config.size or nbytes else None
    outputs += _extracted(files.lora, config.also, size)
    return [*outputs, Output(path=files.report, nbytes=None, is_folder=True)]


def _statistics(
    path: Path,
    tuned: Checkpoint | None,
    dense: int = CalibrateConfig.dense_up_to,
    sketch: int = CalibrateConfig.sketch_rank,
    conv: int = CalibrateConfig.conv_dense_up_to,
) -> list[Output]:
    """The statistics, and until the end the sums to resume from."""
    final = None if tuned is None else statistics_nbytes(tuned, dense, sketch, conv)
    sums = None if tuned is None else sums_nbytes(tuned, dense, sketch, conv)
    unfinished = Output(path=PartialFile(path).path, nbytes=sums, is_temporary=True)
    return [Output(path=path, nbytes=final), unfinished]


def _calibrate(config: CalibrateConfig, inputs: Inputs) -> list[Output]:
    tuned = inputs.checkpoints.get("tuned_model_path")
    return _statistics(config.save_to, tuned, config.dense_up_to, config.sketch_rank, config.conv_dense_up_to)


def _base(path: Path, dtype: str, inputs: Inputs) -> list[Output]:
    """Both twins of a base, with as many parameters as the tuned checkpoint, else as the published one; its ledger."""
    tuned = inputs.checkpoints.get("tuned_model_path") or inputs.checkpoints.get("tuned")
    count = LBM_PARAMETERS if tuned is None else sum(spec.numel for spec in tuned.specs.values())
    *twins, ledger = base_paths(path)
    nbytes = count * dtype_of(dtype).itemsize
    return [*(Output(path=one, nbytes=nbytes) for one in twins), Output(path=ledger, nbytes=_LEDGER)]


def _missing_base(path: Path, backbone: str | None, inputs: Inputs, *, is_made: bool = False) -> list[Output]:
    """The base that another command makes first, if it does."""
    if not makes_base(path, backbone_signature=backbone, is_made=is_made):
        return []
    return _base(path, BaseConfig.torch_dtype, inputs)


def _fuse(config: Any, inputs: Inputs) -> list[Output]:
    base = inputs.checkpoints.get("base_model_path")
    nbytes = None if base is None else sum(spec.nbytes for spec in base.specs.values())
    return [Output(path=config.save_to, nbytes=nbytes)]


def _merge(config: MergeConfig, inputs: Inputs) -> list[Output]:
    """At most what the LoRAs hold together: ranks add up."""
    limit = parse_nbytes(config.max_size) if config.max_size else None
    return [Output(path=config.save_to, nbytes=limit or _loras(inputs, config.save_precision))]


def _resize(config: ResizeConfig, inputs: Inputs) -> list[Output]:
    """At most what the LoRA is."""
    rule, held = resize.check(config), _loras(inputs, config.save_precision)
    paths = extract_plan.lora_paths(config.save_to, rule)
    sizes = rule.nbytes if isinstance(rule, SizeLimits) else [held] * len(paths)
    return [Output(path=path, nbytes=nbytes) for path, nbytes in zip(paths, sizes, strict=True)]


def _convert(config: ConvertConfig, inputs: Inputs) -> list[Output]:
    first, *further = files_of(config.save_to, config.to)
    sized = Output(path=first, nbytes=_loras(inputs, config.save_precision))
    return [sized, *(Output(path=one, nbytes=_SIDECAR) for one in further)]


def _refine(config: RefineConfig, inputs: Inputs) -> list[Output]:
    """The LoRA, and until the end the state to resume from: values and both moments in fp32."""
    nbytes = _loras(inputs, config.save_precision)
    state = refine.state_of(config)
    count = sum(spec.numel for lora in inputs.loras.get("lora_path", ()) for spec in lora.specs.values())
    states = [] if state is None else [Output(path=state, nbytes=3 * 4 * count or None, is_temporary=True)]
    return [Output(path=config.save_to, nbytes=nbytes), *states, *_twins(config.save_to, config.also, nbytes)]


def _loras(inputs: Inputs, dtype: str | None) -> int | None:
    """Bytes of the LoRAs that are read, in the precision that is asked for."""
    specs = [spec for one in inputs.loras.get("lora_path", ()) for spec in one.specs.values()]
    width = precision(dtype).itemsize if dtype else 0
    return sum(spec.numel * (width or spec.dtype.itemsize) for spec in specs) or None


def _infer(config: InferConfig, inputs: Inputs) -> list[Output]:
    """The base if it is made; each result and copy of a source at most three bytes a pixel, which headers tell."""
    outputs = _missing_base(config.base, config.backbone_signature, inputs)
    for job in infer.plan(config, config.source_image, config.mask).jobs:
        check_regular(job.source)
        width, height = encoded_size(job.source.read_bytes())
        nbytes = 3 * width * height
        outputs += [Output(path=path, nbytes=None if path == job.comparison else nbytes) for path in job.new]
        if job.copy is not None and (not job.copy.exists() or is_source_copy(job.copy)):  # others are kept
            outputs.append(Output(path=job.copy, nbytes=nbytes))
    return outputs


def _infer_shards(config: InferShardsConfig, inputs: Inputs) -> list[Output]:
    results = Output(path=home_path(config.output_path), nbytes=None, is_folder=True)
    return [*_missing_base(config.base, config.backbone_signature, inputs), results]


def _train(config: Any, inputs: Inputs) -> list[Output]:
    """The base if it is made, and the folder of the run."""
    made = _missing_base(train.base_path(config), config.backbone_signature, inputs)
    return [*made, Output(path=config.save_ckpt_path, nbytes=_run_nbytes(config, inputs), is_folder=True)]


def _run_nbytes(config: Any, inputs: Inputs) -> int | None:
    """Bytes of all saves and the state; None if they are not told by the base's header and the settings."""
    base = inputs.checkpoints.get("base_model_path")
    if base is None or config.mode == "full" or config.lora_rank is None:
        return None
    shapes = [spec.shape for name, spec in base.component().specs.items() if leaf_of(name) == "weight"]
    linear, conv = config.lora_rank, config.lora_conv_rank or config.lora_rank
    count = sum(
        min(conv if len(shape) == 4 else linear, rank_bound(shape)) * sum(matrix_shape(shape))
        for shape in shapes
        if has_matrix_view(shape)
    )
    saves = config.max_steps // config.save_interval + 2 if getattr(config, "max_steps", None) else 2
    saves = min(saves, (config.keep_last or saves) + 2)
    # each save is fp32; the state has values and both moments
    return (saves + 3) * 4 * count


def _pack(config: Any, inputs: Inputs) -> list[Output]:
    nbytes = sum(one.stat().st_size for one in config.folder.rglob("*") if one.is_file())
    return [Output(path=config.to, nbytes=nbytes, is_folder=True)]


def _validate(config: ValidateConfig, inputs: Inputs) -> list[Output]:
    config = with_report(config)
    report = Output(path=report_folder(config), nbytes=None, is_folder=True)
    return [report, Output(path=layer_names_file(config), nbytes=None)]


def _twins(lora: Path, also: Sequence[ForeignFormat], nbytes: int | None) -> list[Output]:
    return [Output(path=path, nbytes=nbytes, is_folder=to == "peft") for to, path in twins_of(lora, also).items()]


def _folder(name: str) -> Callable[[Any, Inputs], list[Output]]:
    """A command whose only output is a folder of unknown size."""

    def outputs(config: Any, inputs: Inputs) -> list[Output]:
        path = getattr(config, name)
        return [] if path is None else [Output(path=Path(path), nbytes=None, is_folder=True)]

    return outputs


_OUTPUTS: dict[str, Callable[[Any, Inputs], list[Output]]] = {
    "base": lambda config, inputs: _base(config.save_path, config.torch_dtype, inputs),
    "calibrate": _calibrate,
    "compress": _compress,
    "convert": _convert,
    "data_pack": _pack,
    "demo": _folder("output"),
    "extract": _extract,
    "fuse": _fuse,
    "infer": _infer,
    "infer_shards": _infer_shards,
    "inspect": _folder("report"),
    "merge": _merge,
    "push": _folder("save_to"),
    "refine": _refine,
    "resize": _resize,
    "train": _train,
    "validate": _validate,
}
"""Module of a workflow -> what it writes. `layers`, `data_check` and `doctor` write nothing."""
