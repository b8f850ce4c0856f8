"""Write a LoRA in another format: the verb `convert`."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from lbm_lora.choices import BiasesAs, FormatName, NormsAs
from lbm_lora.errors import ConfigError, Option, listing
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import Base, Count, File, Lora, LoraAlphaIs, Named, Overwrite
from lbm_lora.verbs.verb import EVERYDAY, verb

if TYPE_CHECKING:
    from lbm_lora.naming import ParamName


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
    dropped: "tuple[ParamName, ...]" = field(repr=False)
    """Parameters left out, as the options say."""
    reduced: "tuple[ParamName, ...]" = field(repr=False)
    """Matrices approximated at the requested rank."""
    relative_error: float
    """Error of all deltas together; 0 if nothing was approximated."""
    notes: tuple[str, ...]


def _text(result: ConvertResult, verbose: bool) -> str:
    """Return what the file holds, what was left out, and who reads it; with `verbose`, each parameter left out."""
    from lbm_lora.adapter.formats.names import counted
    from lbm_lora.adapter.formats.readers import calls_of
    from lbm_lora.report.wording import percent, plural
    from lbm_lora.verbs.lines import file_lines, paragraphs

    counts = [
        plural(result.modules, "lora module"),
        plural(result.biases, "bias", "biases"),
        plural(result.norms, "norm parameter"),
        *([plural(result.others, "other dense delta")] if result.others else []),
    ]
    lines = [f"Converted from {result.source} to {result.to}: {', '.join(counts)}."]
    if result.dropped:
        names = listing(result.dropped, limit=len(result.dropped) if verbose else 2)
        lines.append(f"Left out: {counted(result.dropped)} ({names}).")
    if result.reduced:
        error = percent(result.relative_error)
        lines.append(
            f"Approximated {plural(len(result.reduced), 'matrix', 'matrices')}; relative error of all changes {error}."
        )
    return paragraphs(
        "\n".join(lines), "\n".join(result.notes), f"Read by {calls_of(result.to)}.", file_lines(*result.files)
    )


@verb(
    "write a LoRA for ComfyUI, sd-scripts, diffusers, PEFT or LyCORIS",
    group=EVERYDAY,
    examples=(
        "lbm-lora convert --lora_path lora.safetensors --to comfyui --save_to lora_comfyui.safetensors",
        "lbm-lora convert --lora_path lora.safetensors --to diffusers --biases lora_bias --norms drop --save_to "
        "pytorch_lora_weights.safetensors",
        "lbm-lora convert --lora_path from_peft --to native --save_to lora.safetensors",
    ),
    text=_text,
)
def convert(
    lora: Lora,
    to: Annotated[FormatName, Named("FORMAT")],
    save_to: File,
    *,
    overwrite: Overwrite = False,
    biases: BiasesAs = "keep",
    norms: NormsAs = "keep",
    base: Base | None = None,
    save_precision: Literal["float", "fp16", "bf16", "int8"] | None = None,
    rank: Annotated[Count | None, Named("N")] = None,
    lora_alpha_is: LoraAlphaIs = "auto",
    progress: Progress = SILENT,
) -> tuple[ConvertResult, ConvertResult]:
    """Write a LoRA in the format of another program: ComfyUI, sd-scripts, diffusers, PEFT or LyCORIS. The format of
    the given file is detected.

    Args:
        lora: The LoRA, of any of these formats; an adapter of PEFT is a folder.
        to: Format to write: native, lbm-lora's own; comfyui, with the keys of ComfyUI's loader; kohya, with SDXL's
            single-file names; kohya-diffusers, with diffusers' names; or diffusers, peft or lycoris, for these
            libraries.
        save_to: Write the LoRA here: a .safetensors file, or a folder for peft.
        biases: What to do with changed biases: keep them, or fail if the format cannot hold them; store them as the
            bias of PEFT's lora_B (lora_bias); store the tuned values in place of the base's (replace); or drop them.
        norms: What to do with changed norms: keep them, or fail if the format cannot hold them; store the tuned values
            in place of the base's (replace); or drop them.
        base: Base of the LoRA. Needed for replace, and to read files with DoRA magnitudes or with values that replace
            the base's.
        save_precision: Store the LoRA in this precision. Default: that of the file. Only the native format holds int8;
            the others store such factors as float.
        rank: Approximate matrices of a higher rank at this rank, and report the error. For LoHa, LoKr and dense
            matrices, which are large in their exact form. Default: exact.
        lora_alpha_is: Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.

    Returns:
        The files and their contents: what was left out, and the error of what was approximated.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    from lbm_lora.adapter import FORMAT, Wishes, precision, save_adapter
    from lbm_lora.adapter.adapter_file import files_of, plan_files
    from lbm_lora.adapter.formats.names import is_norm
    from lbm_lora.adapter.limit import limited
    from lbm_lora.adapter.twins import check_form
    from lbm_lora.apply import check_base, check_fit
    from lbm_lora.files import Outputs, written_bytes
    from lbm_lora.naming import leaf_of
    from lbm_lora.verbs.values import adapter_of, inputs, opened_base

    path = Path(save_to)
    if save_precision == "int8" and to != "native":
        raise ConfigError(Option("save_precision", "int8"), f" is of the native format alone, not of {to}.")
    for option, wish in {"biases": biases, "norms": norms}.items():
        if wish == "replace" and base is None:
            raise ConfigError(
                Option(option, "replace"), " needs the base's values: ", Option("base_model_path", "BASE"), "."
            )
    check_form(path, to)
    outputs = Outputs(overwrite=overwrite).reads(*inputs(lora, base))
    plan_files(outputs, path, to)
    outputs.check()
    with ExitStack() as stack:
        opened = opened_base(stack, base)
        component = None if opened is None else opened.component()
        adapter = adapter_of(lora, lora_alpha_is, base=component)
        source = adapter.file_format
        if component is not None:
            check_fit(adapter, component.shapes)
            if adapter.metadata.base_fingerprint:
                check_base(adapter, component)
        reduced, error = (), 0.0
        if rank is not None:
            progress.start(0, "approximating")
            found = limited(adapter, rank)
            adapter, reduced, error = found.adapter, found.reduced, found.relative_error
        if save_precision is not None:
            adapter = adapter.cast(precision(save_precision))
        if to == "native":
            adapter = replace(adapter, metadata=replace(adapter.metadata, format=FORMAT))
        saved = save_adapter(adapter, path, format=to, wishes=Wishes(biases, norms, component))
    files = files_of(saved.path, to)
    dense = [name for name in adapter.dense if name not in saved.dropped]
    norm_count = sum(map(is_norm, dense))
    bias_count = sum(leaf_of(name) == "bias" and not is_norm(name) for name in dense)
    result = ConvertResult(
        output=saved.path,
        files=files,
        nbytes=written_bytes(*files),
        source=source,
        to=to,
        modules=len(adapter.modules),
        biases=bias_count,
        norms=norm_count,
        others=len(dense) - bias_count - norm_count,
        dropped=saved.dropped,
        reduced=reduced,
        relative_error=error,
        notes=saved.notes,
    )
    return result, result
