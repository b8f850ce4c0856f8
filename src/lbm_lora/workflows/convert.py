"""Write a LoRA in another format: the verb `convert`."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from lbm_lora.adapter import FORMAT, Adapter, Saved, Wishes, load_adapter, precision, save_adapter
from lbm_lora.adapter.adapter_file import files_of, plan_files
from lbm_lora.adapter.formats.names import is_norm
from lbm_lora.adapter.limit import limited
from lbm_lora.apply import check_base, check_fit
from lbm_lora.checkpoint import Component, open_checkpoint
from lbm_lora.configs.convert import ConvertConfig
from lbm_lora.configs.values import FormatName
from lbm_lora.errors import ConfigError, Option
from lbm_lora.files import Outputs, written_bytes
from lbm_lora.hub import localized
from lbm_lora.naming import ParamName, leaf_of
from lbm_lora.progress import SILENT, Progress
from lbm_lora.workflows.files_beside import check_form, warn_of_others


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A LoRA as another format holds it, and what that took.

    Attributes:
        adapter: as it is to be written.
        reduced: matrices that were approximated at a lower rank.
        relative_error: of all deltas together; 0 if nothing was approximated.
    """

    adapter: Adapter
    reduced: tuple[ParamName, ...]
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class ConvertResult:
    """Written files, and what is in them."""

    output: Path
    """The file; for peft the folder."""
    files: tuple[Path, ...]
    nbytes: int
    """Of all files."""
    source: FormatName
    """Format of the given file."""
    to: FormatName
    modules: int
    """Low-rank deltas."""
    biases: int
    norms: int
    """Dense deltas of norms, weights and biases counted separately."""
    others: int
    """Dense deltas of other parameters."""
    dropped: tuple[ParamName, ...] = field(repr=False)
    """Parameters left out, as the options say."""
    reduced: tuple[ParamName, ...] = field(repr=False)
    """Matrices approximated at the requested rank."""
    relative_error: float
    """Error of all deltas together; 0 if nothing was approximated."""
    notes: tuple[str, ...]


def run(config: ConvertConfig, progress: Progress = SILENT) -> ConvertResult:
    """Read a LoRA of any format and write it in another.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    config = localized(config, progress)
    check(config)
    check_output(config)
    with ExitStack() as stack:
        base = None
        if config.base_model_path is not None:
            base = stack.enter_context(open_checkpoint(config.base_model_path)).component()
        adapter = load_adapter(config.lora_path, config.lora_alpha_is, base=base)
        made = converted(config, adapter, base, progress)
        saved = save_adapter(made.adapter, config.save_to, format=config.to, wishes=wishes_of(config, base))
    warn_of_others(saved.path)
    return result_of(config, adapter.file_format, made, saved)


run_convert = run
"""Its name on the public page."""


def check(config: ConvertConfig) -> None:
    """Refuse options that do not go together, before anything is opened.

    Raises:
        ConfigError: a precision that the format does not have, or a base that is missing.
    """
    if config.save_precision == "int8" and config.to != "native":
        raise ConfigError(Option("save_precision", "int8"), f" is of the native format alone, not of {config.to}.")
    for option in ("biases", "norms"):
        if getattr(config, option) == "replace" and config.base_model_path is None:
            raise ConfigError(
                Option(option, "replace"), " needs the base's values: ", Option("base_model_path", "BASE"), "."
            )


def check_output(config: ConvertConfig) -> None:
    """Refuse an output of the wrong form, one that is also an input, or a file that is not ours.

    Raises:
        OutputError: in each case.
    """
    outputs = Outputs(overwrite=config.overwrite).reads(config.lora_path, config.base_model_path)
    check_form(config.save_to, config.to)
    plan_files(outputs, config.save_to, config.to)
    outputs.check()


def wishes_of(config: ConvertConfig, base: Component | None) -> Wishes:
    """Return what becomes of deltas that the format cannot hold."""
    return Wishes(config.biases, config.norms, base)


def converted(
    config: ConvertConfig, adapter: Adapter, base: Component | None, progress: Progress = SILENT
) -> Converted:
    """Return a LoRA as it is to be written: at the requested rank and precision.

    Args:
        config: its paths name things for messages; nothing is read from them.
        base: the base's denoiser, which the LoRA must fit.
    """
    if base is not None:
        check_fit(adapter, base.shapes)
        if adapter.metadata.base_fingerprint:
            check_base(adapter, base)
    reduced, error = tuple[ParamName, ...](), 0.0
    if config.rank is not None:
        progress.start(0, "approximating")
        found = limited(adapter, config.rank)
        adapter, reduced, error = found.adapter, found.reduced, found.relative_error
    if config.save_precision is not None:
        adapter = adapter.cast(precision(config.save_precision))
    if config.to == "native":
        adapter = replace(adapter, metadata=replace(adapter.metadata, format=FORMAT))
    return Converted(adapter=adapter, reduced=reduced, relative_error=error)


def result_of(config: ConvertConfig, source: FormatName, made: Converted, saved: Saved) -> ConvertResult:
    """Return the result of a written LoRA."""
    files, dropped = files_of(saved.path, config.to), set(saved.dropped)
    dense = [name for name in made.adapter.dense if name not in dropped]
    norms = sum(map(is_norm, dense))
    biases = sum(leaf_of(name) == "bias" and not is_norm(name) for name in dense)
    return ConvertResult(
        output=saved.path,
        files=files,
        nbytes=written_bytes(*files),
        source=source,
        to=config.to,
        modules=len(made.adapter.modules),
        biases=biases,
        norms=norms,
        others=len(dense) - biases - norms,
        dropped=saved.dropped,
        reduced=made.reduced,
        relative_error=made.relative_error,
        notes=saved.notes,
    )
