"""Say what a file is, or how two files differ: the verb `inspect`."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lbm_lora.errors import ConfigError
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import (
    HIDDEN,
    POSITIONAL,
    Base,
    FlagName,
    LoraAlphaIs,
    Model,
    Named,
    OutputFolder,
    Overwrite,
    Several,
)
from lbm_lora.verbs.verb import EVERYDAY, as_flag, verb

if TYPE_CHECKING:
    from lbm_lora.checkpoint import Checkpoint, Fingerprint
    from lbm_lora.choices import AlphaIs
    from lbm_lora.report.inspection import CheckpointFacts, Inspection


def _text(result: "Inspection", _: bool) -> str:
    from lbm_lora.report.inspection import screen
    from lbm_lora.verbs.lines import file_lines, paragraphs

    return paragraphs(screen(result, as_flag), file_lines(*result.written))


@verb(
    "show what a file is, or how two differ",
    group=EVERYDAY,
    examples=(
        "lbm-lora inspect lora.safetensors",
        "lbm-lora inspect lora.safetensors --base_model_path base.safetensors --report lora_report",
        "lbm-lora inspect one.safetensors other.safetensors --json",
    ),
    text=_text,
)
def inspect(
    file: Annotated[Several[Model], Named("FILE"), FlagName("files"), POSITIONAL],
    other: Annotated[Model | None, HIDDEN] = None,
    *,
    overwrite: Overwrite = False,
    base: Base | None = None,
    report: OutputFolder = None,
    lora_alpha_is: LoraAlphaIs = "auto",
    progress: Progress = SILENT,
) -> "tuple[Inspection, Inspection]":
    """Show on one screen what a file is, LoRA or checkpoint, or how two files differ.

    Args:
        file: One file to inspect, or two to compare: LoRAs, checkpoints, or a LoRA and a checkpoint that it may fit.
        other: A second file to compare it with.
        base: Also check whether the LoRA was made from this checkpoint, and fits it. Needed to read a LoRA with values
            that replace the base's.
        report: Write inspect.html to this folder: the same facts, and the blocks as heat maps.

    Returns:
        The facts of `file` and of `other`, and their `difference` or `fit`.

    Raises:
        InputError: a file cannot be read; see `lbm_lora.errors`.
    """
    from lbm_lora.files import Outputs
    from lbm_lora.hub import local_lora, open_checkpoint
    from lbm_lora.report.inspection import PAGE, write_page
    from lbm_lora.verbs.values import inputs, opened_base, several

    given = [*several(file), *([] if other is None else [other])]
    if not 1 <= len(given) <= 2:
        raise ConfigError(f"inspect takes one file or two, got {len(given)}.")
    local = [local_lora(one, progress) if isinstance(one, str | Path) else one for one in given]
    if report is not None:
        page = Path(report) / PAGE
        Outputs(overwrite=overwrite).reads(*inputs(*local, base)).writes(page, "the page").check()
    with ExitStack() as stack:
        opened = [stack.enter_context(open_checkpoint(one)) for one in local]
        found = _inspected(opened, opened_base(stack, base), lora_alpha_is, progress)
    if report is not None:
        found = replace(found, written=(write_page(found, Path(report)),))
    return found, found


def _inspected(
    files: "Sequence[Checkpoint]", base: "Checkpoint | None", alpha_is: "AlphaIs", progress: Progress
) -> "Inspection":
    from lbm_lora.adapter import Adapter
    from lbm_lora.checkpoint import fingerprint
    from lbm_lora.report.inspection import (
        KNOWN,
        Inspection,
        adapter_difference,
        adapter_facts,
        checkpoint_difference,
        denoiser_of,
        file_facts,
        fit_of,
        read_as_lora,
    )

    component = None if base is None else base.component()
    loras = [read_as_lora(file, alpha_is, component) for file in files]
    base_print = None if component is None else fingerprint(component)
    known = dict(KNOWN)
    if base is not None and base_print is not None:
        known[base_print.digest] = base.path.name
    # checkpoints first: a LoRA next to one may name its fingerprint
    checkpoints = [
        _measured(file, known, progress) if lora is None else None for file, lora in zip(files, loras, strict=True)
    ]
    known |= {found[1].digest: file.path.name for file, found in zip(files, checkpoints, strict=True) if found}
    facts = [file_facts(file, lora) for file, lora in zip(files, loras, strict=True)]
    for place, (lora, found) in enumerate(zip(loras, checkpoints, strict=True)):
        plain = facts[place]
        adapter = adapter_facts(lora, plain.nbytes, known, progress) if isinstance(lora, Adapter) else None
        facts[place] = replace(plain, adapter=adapter, checkpoint=found[0] if found else None)
    adapters = [lora for lora in loras if isinstance(lora, Adapter)]
    against = [(denoiser_of(file), found[1]) for file, found in zip(files, checkpoints, strict=True) if found]
    if component is not None and base_print is not None:
        against.append((component, base_print))
    difference = None
    if len(adapters) == 2:
        difference = adapter_difference(adapters[0], adapters[1], progress)
    elif len(files) == 2 and all(checkpoints):
        difference = checkpoint_difference(files[0], files[1], progress)
    return Inspection(
        file=facts[0],
        other=facts[1] if len(facts) == 2 else None,
        difference=difference,
        fit=fit_of(adapters[0], *against[0]) if len(adapters) == 1 and against else None,
    )


def _measured(
    file: "Checkpoint", known: Mapping[str, str], progress: Progress
) -> "tuple[CheckpointFacts, Fingerprint] | None":
    """Return the facts of a checkpoint; None for a file of anything else."""
    from lbm_lora.checkpoint import kind_of
    from lbm_lora.model.baseline import BASE_MARK, ORIGIN_KEY
    from lbm_lora.report.inspection import checkpoint_facts

    kind = kind_of(file.specs, file.metadata)
    if not file.specs or (kind is not None and kind.role != "network"):
        return None
    is_exact_base = BASE_MARK in (file.metadata.get(ORIGIN_KEY), file.extra.get(ORIGIN_KEY))
    return checkpoint_facts(file, known, is_exact_base=is_exact_base, config=_config_of(file), progress=progress)


def _config_of(file: "Checkpoint") -> str:
    """Return where the configuration of a checkpoint's networks comes from; see `resolve_config`."""
    from lbm_lora.model.constants import has_lbm_unet, has_sdxl_vae
    from lbm_lora.model.resolve import config_beside, own_values

    if own_values(file):
        return "in the file"
    beside = None if file.in_memory else config_beside(file.path)
    if beside is not None:
        return f"{beside.name} next to it"
    if has_lbm_unet(file.specs) and has_sdxl_vae(file.specs):
        return "not in the file or next to it; LBM's own, by its shapes"
    return "not in the file or next to it"
