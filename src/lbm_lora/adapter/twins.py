"""Twins of a LoRA in formats of other programs, next to its native file: the option `also`.

A twin holds all that its format can. Biases and norms that it cannot hold are left out, with a warning that counts
them. A twin that its format cannot express at all is also a warning: the native file holds everything.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lbm_lora.adapter.adapter_file import files_of, load_adapter, plan_files, save_adapter
from lbm_lora.adapter.formats import WISHES
from lbm_lora.adapter.formats.names import counted
from lbm_lora.adapter.metadata import STEP_KEY
from lbm_lora.adapter.module import Adapter
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.choices import ForeignFormat, FormatName
from lbm_lora.errors import InputError, Option, OutputError
from lbm_lora.files import Outputs, current, written_bytes
from lbm_lora.naming import ParamName
from lbm_lora.progress import SILENT, Progress, warn


@dataclass(frozen=True, kw_only=True)
class Twin:
    """Written twin."""

    format: ForeignFormat
    path: Path
    """The file; for peft the folder."""
    files: tuple[Path, ...]
    nbytes: int
    """Of all files."""
    dropped: tuple[ParamName, ...]
    """Parameters left out, since the format cannot hold them."""
    notes: tuple[str, ...]
    """What a user of the file should know, one sentence each."""


def check_form(path: Path, to: FormatName = "native") -> None:
    """Refuse a path that is not that of a format."""
    is_file = path.suffix == ".safetensors"
    if to == "peft" and (is_file or path.is_file()):
        raise OutputError(Option("save_to"), f" {path}: an adapter of PEFT is a folder.")
    if to != "peft" and not is_file:
        raise OutputError(Option("save_to"), f" {path}: a LoRA is a .safetensors file.")


def twin_path(lora: Path, to: ForeignFormat) -> Path:
    """Return the path of a twin: `x.comfyui.safetensors` for `x.safetensors`, the folder `x.peft`."""
    return lora.with_name(f"{lora.stem}.{to}{'' if to == 'peft' else lora.suffix}")


def plan_twins(outputs: Outputs, loras: Iterable[Path], also: Sequence[ForeignFormat]) -> None:
    """Note the files of all twins."""
    for lora in loras:
        for to in dict.fromkeys(also):
            check_form(twin_path(lora, to), to)
            plan_files(outputs, twin_path(lora, to), to, f"the {to} twin")


def write_twins(lora: Path, also: Sequence[ForeignFormat], progress: Progress = SILENT) -> tuple[Twin, ...]:
    """Write the twins of a native file; see the module's docstring for what they leave out."""
    if not also:
        return ()
    adapter = _with_step(load_adapter(current(lora), "file"), current(lora))
    formats = tuple(dict.fromkeys(also))
    progress.start(len(formats), "writing other formats")
    twins: list[Twin] = []
    for to in formats:
        path = twin_path(lora, to)
        try:
            saved = save_adapter(adapter, path, format=to, wishes=WISHES[to])
        except OutputError:  # the disk's fault: nothing of the command is kept
            raise
        except InputError as error:
            warn(f"{path} was not written: ", *error.args)
        else:
            if saved.dropped:
                warn(f"{path} leaves out {counted(saved.dropped)}, which the format {to} cannot hold as changes.")
            files = files_of(path, to)
            twins.append(
                Twin(
                    format=to,
                    path=path,
                    files=files,
                    nbytes=written_bytes(*files),
                    dropped=saved.dropped,
                    notes=saved.notes,
                )
            )
            for note in saved.notes:
                progress.note(f"{path}: {note}")
        progress.advance()
    return tuple(twins)


def _with_step(adapter: Adapter, file: Path) -> Adapter:
    """Copy the training step from the file that the adapter was read from."""
    with open_checkpoint(file) as checkpoint:
        step = checkpoint.metadata.get(STEP_KEY)
    facts = {**adapter.metadata.facts, **({STEP_KEY: step} if step else {})}
    return replace(adapter, metadata=replace(adapter.metadata, facts=facts))
