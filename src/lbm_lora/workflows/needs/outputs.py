"""The files that a command would write, and their sizes as far as headers tell them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbm_lora.adapter import precision
from lbm_lora.adapter.adapter_file import files_of
from lbm_lora.checkpoint import Checkpoint, dtype_of
from lbm_lora.configs.calibrate import CalibrateConfig
from lbm_lora.configs.compress import CompressConfig
from lbm_lora.configs.convert import ConvertConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.infer import InferConfig
from lbm_lora.configs.merge import MergeConfig
from lbm_lora.configs.resize import ResizeConfig
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.configs.values import (
    CONV_DENSE_UP_TO,
    DENSE_UP_TO,
    SKETCH_RANK,
)
from lbm_lora.extraction import COVERAGES, Action, plan_extraction
from lbm_lora.factorize import FixedRank, has_matrix_view, matrix_shape, rank_bound
from lbm_lora.imaging.paths import plan_outputs
from lbm_lora.model.write_base import twin_paths
from lbm_lora.naming import leaf_of
from lbm_lora.ranks import parse_nbytes
from lbm_lora.regular_file import check_regular
from lbm_lora.workflows.files_beside import twin_path
from lbm_lora.workflows.needs.inputs import Inputs
from lbm_lora.workflows.needs.memory import LBM_PARAMETERS
from lbm_lora.workflows.needs.sizes import Delta, lora_nbytes, statistics_nbytes
from lbm_lora.workflows.validate_files import layer_names_file, report_folder

_SIDECAR = 1_000
_FRACTION = 50  # default size of `compress`: this part of the tuned checkpoint


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file or folder to be written.

    Attributes:
        nbytes: expected size; None if it is not known before the run.
        is_folder: whether it is a folder.
    """

    path: Path
    nbytes: int | None
    is_folder: bool = False


def outputs_of(command: str, config: Any, inputs: Inputs) -> list[Output]:
    """Return what a command would write, in the order of writing.

    Args:
        command: name of its module in `lbm_lora.workflows`.

    Raises:
        InputError: names or shapes of its inputs do not fit, so that it would write nothing.
    """
    return _OUTPUTS[command](config, inputs) if command in _OUTPUTS else []


def _extract(config: ExtractConfig, inputs: Inputs) -> list[Output]:
    outputs = _base(config.base_model_path, "bf16", inputs) if config.create_base_model else []
    outputs = outputs if not config.base_model_path.exists() else []
    tuned, base = inputs.checkpoints.get("tuned_model_path"), inputs.checkpoints.get("base_model_path")
    if config.calibration_images is not None and config.statistics is not None:
        outputs.append(_statistics(config.statistics, tuned))
    sizes = [parse_nbytes(size) for size in config.max_size]
    names = [*(f"r{rank}" for rank in config.ranks), *config.max_size]
    dtype = config.save_precision or ("fp16" if config.statistics is not None else "bf16")
    searched = (config.max_error, config.max_output_error, config.min_psnr, config.keep_energy, config.max_module_error)
    for at, name in enumerate(names or [""]):
        path = config.save_to.with_stem(f"{config.save_to.stem}_{name}") if len(names) > 1 else config.save_to
        if sizes:
            nbytes: int | None = sizes[at]
        elif tuned is None or any(limit is not None for limit in searched):
            nbytes = None
        else:
            ranks = FixedRank.of(config.ranks[at] if config.ranks else config.rank, config.conv_rank)
            nbytes = lora_nbytes(tuned.component(), ranks, dtype, _planned(config, tuned, base))
        outputs.append(Output(path=path, nbytes=nbytes))
        outputs.append(Output(path=path.with_name(f"{path.stem}_config.yaml"), nbytes=_SIDECAR))
        outputs += [_twin(path, to, nbytes) for to in config.also]
    return outputs


def _planned(config: ExtractConfig, tuned: Checkpoint, base: Checkpoint | None) -> list[Delta]:
    """The deltas that an extraction stores: of the pair, or of the tuned checkpoint where the base is not there yet."""
    plan = plan_extraction(
        (base or tuned).component(),
        tuned.component(),
        include=(*config.include, *COVERAGES[config.target_coverage]),
        exclude=config.exclude,
        keep_dense=config.dense,
    )
    kept = (Action.DECOMPOSE, Action.KEEP_DENSE)
    return [(one.name, one.shape, one.action is Action.DECOMPOSE) for one in plan.items if one.action in kept]


def _compress(config: CompressConfig, inputs: Inputs) -> list[Output]:
    tuned = inputs.checkpoints.get("tuned")
    folder = config.output or Path(f"{config.name or config.tuned.stem}_lora")
    nbytes = None if tuned is None else sum(spec.nbytes for spec in tuned.specs.values())
    outputs = [Output(path=folder, nbytes=None, is_folder=True)]
    if config.base_model_path is None and not (folder / "exact_base.safetensors").is_file():
        outputs += _base(folder / "exact_base.safetensors", "bf16", inputs)
    if config.calibration is None:
        outputs.append(_statistics(folder / "calibration.safetensors", tuned))
    size = parse_nbytes(config.size, "size") if config.size else None if nbytes is None else nbytes // _FRACTION
    lora = folder / f"{config.name or config.tuned.stem}_lora.safetensors"
    outputs += [Output(path=lora, nbytes=size), *(_twin(lora, to, size) for to in config.also)]
    return [*outputs, Output(path=folder / "report", nbytes=None, is_folder=True)]


def _statistics(
    path: Path,
    tuned: Checkpoint | None,
    dense: int = DENSE_UP_TO,
    sketch: int = SKETCH_RANK,
    conv: int = CONV_DENSE_UP_TO,
) -> Output:
    return Output(path=path, nbytes=None if tuned is None else statistics_nbytes(tuned, dense, sketch, conv))


def _calibrate(config: CalibrateConfig, inputs: Inputs) -> list[Output]:
    tuned = inputs.checkpoints.get("tuned_model_path")
    return [_statistics(config.save_to, tuned, config.dense_up_to, config.sketch_rank, config.conv_dense_up_to)]


def _base(path: Path, dtype: str, inputs: Inputs) -> list[Output]:
    """Both twins of a base: as many parameters as the tuned checkpoint has, else as the published one."""
    tuned = inputs.checkpoints.get("tuned_model_path") or inputs.checkpoints.get("tuned")
    count = LBM_PARAMETERS if tuned is None else sum(spec.numel for spec in tuned.specs.values())
    return [Output(path=one, nbytes=count * dtype_of(dtype).itemsize) for one in twin_paths(path)]


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
    names = [*(f"r{rank}" for rank in config.ranks), *config.max_size]
    sizes = [parse_nbytes(size) for size in config.max_size]
    held = _loras(inputs, config.save_precision)
    if len(names) < 2:
        return [Output(path=config.save_to, nbytes=sizes[0] if sizes else held)]
    stems = [f"{config.save_to.stem}_{name}" for name in names]
    return [
        Output(path=config.save_to.with_stem(stem), nbytes=sizes[at] if sizes else held)
        for at, stem in enumerate(stems)
    ]


def _convert(config: ConvertConfig, inputs: Inputs) -> list[Output]:
    first, *further = files_of(config.save_to, config.to)
    sized = Output(path=first, nbytes=_loras(inputs, config.save_precision))
    return [sized, *(Output(path=one, nbytes=_SIDECAR) for one in further)]


def _refine(config: Any, inputs: Inputs) -> list[Output]:
    """The LoRA, and until the end the state to resume from: values and both moments in fp32."""
    nbytes = _loras(inputs, config.save_precision)
    state = config.save_to.with_name(f"{config.save_to.stem}.refine.pt")
    count = sum(spec.numel for lora in inputs.loras.get("lora_path", ()) for spec in lora.specs.values())
    twins = [_twin(config.save_to, to, nbytes) for to in config.also]
    states = [Output(path=state, nbytes=3 * 4 * count or None)] if config.method == "adam" else []
    return [Output(path=config.save_to, nbytes=nbytes), *states, *twins]


def _loras(inputs: Inputs, dtype: str | None) -> int | None:
    """Bytes of the LoRAs that are read, in the precision that is asked for."""
    specs = [spec for one in inputs.loras.get("lora_path", ()) for spec in one.specs.values()]
    width = precision(dtype).itemsize if dtype else 0
    return sum(spec.numel * (width or spec.dtype.itemsize) for spec in specs) or None


def _infer(config: InferConfig, inputs: Inputs) -> list[Output]:
    """At most three bytes a pixel of the source's size, which the header of an image tells."""
    from lbm_lora.imaging.encoded import encoded_size

    outputs: list[Output] = []
    sources = inputs.images.get("source_image", ())
    for source, output in zip(sources, plan_outputs(sources, config.output_path) if sources else (), strict=True):
        check_regular(source)
        size = encoded_size(source.read_bytes())
        outputs.append(Output(path=output, nbytes=3 * size[0] * size[1]))
    return outputs


def _train(config: Any, inputs: Inputs) -> list[Output]:
    """The folder of the run."""
    folder = config.save_ckpt_path
    base = inputs.checkpoints.get("base_model_path")
    if base is None or config.mode == "full" or config.lora_rank is None:
        return [Output(path=folder, nbytes=None, is_folder=True)]
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
    return [Output(path=folder, nbytes=(saves + 3) * 4 * count, is_folder=True)]


def _pack(config: Any, inputs: Inputs) -> list[Output]:
    nbytes = sum(one.stat().st_size for one in config.folder.rglob("*") if one.is_file())
    return [Output(path=config.to, nbytes=nbytes, is_folder=True)]


def _validate(config: ValidateConfig, inputs: Inputs) -> list[Output]:
    report = Output(path=report_folder(config), nbytes=None, is_folder=True)
    return [report, Output(path=layer_names_file(config), nbytes=None)]


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
    "infer_shards": _folder("output_path"),
    "inspect": _folder("report"),
    "merge": _merge,
    "push": _folder("save_to"),
    "refine": _refine,
    "resize": _resize,
    "train": _train,
    "validate": _validate,
}
"""Module of a workflow -> what it writes. `layers`, `data_check` and `doctor` write nothing."""


def _twin(lora: Path, to: Any, nbytes: int | None) -> Output:
    return Output(path=twin_path(lora, to), nbytes=nbytes, is_folder=to == "peft")
