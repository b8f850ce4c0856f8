"""Twins of a LoRA in formats of other programs, next to its native file: the option `also`.

A twin holds all that its format can. Biases and norms that it cannot hold are left out, with a warning that counts
them. A twin that its format cannot express at all is also a warning: the native file holds everything.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lbm_lora.adapter import Adapter, load_adapter, save_adapter
from lbm_lora.adapter.adapter_file import files_of, plan_files
from lbm_lora.adapter.formats import WISHES
from lbm_lora.adapter.formats.names import counted
from lbm_lora.adapter.metadata import STEP_KEY
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.configs.values import ForeignFormat
from lbm_lora.errors import InputError, OutputError
from lbm_lora.files import Outputs, current, written_bytes
from lbm_lora.naming import ParamName
from lbm_lora.progress import SILENT, Progress, warn
from lbm_lora.workflows.files_beside import check_form, twins_of, warn_of_others


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


def plan_twins(outputs: Outputs, loras: Iterable[Path], also: Sequence[ForeignFormat]) -> None:
    """Note the files of all twins.

    Raises:
        OutputError: a file has the path of a folder.
    """
    for lora in loras:
        for to, path in twins_of(lora, also).items():
            check_form(path, to)
            plan_files(outputs, path, to, f"the {to} twin")


def _marked(adapter: Adapter, file: Path) -> Adapter:
    """Return an adapter whose files count as saved by a training run if the one that it was read from does."""
    with open_checkpoint(file) as checkpoint:
        step = checkpoint.metadata.get(STEP_KEY)
    facts = {**adapter.metadata.facts, **({STEP_KEY: step} if step else {})}
    return replace(adapter, metadata=replace(adapter.metadata, facts=facts))


def write_twins(lora: Path, also: Sequence[ForeignFormat], progress: Progress = SILENT) -> tuple[Twin, ...]:
    """Write the twins of a native file; see the module's docstring for what they leave out."""
    if not also:
        warn_of_others(lora)
        return ()
    adapter, paths = _marked(load_adapter(current(lora), "file"), current(lora)), twins_of(lora, also)
    progress.start(len(paths), "writing other formats")
    twins: list[Twin] = []
    for to, path in paths.items():
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
            nbytes = written_bytes(*files)
            twin = Twin(format=to, path=path, files=files, nbytes=nbytes, dropped=saved.dropped, notes=saved.notes)
            twins.append(twin)
            for note in saved.notes:
                progress.note(f"{path}: {note}")
        progress.advance()
    warn_of_others(lora, [twin.format for twin in twins])
    return tuple(twins)
