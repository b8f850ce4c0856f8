"""Say what a file is, or how two files differ: the verb `inspect`."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from lbm_lora.adapter import Adapter
from lbm_lora.checkpoint import Checkpoint, Fingerprint, fingerprint, kind_of, open_checkpoint
from lbm_lora.configs.inspect import InspectConfig
from lbm_lora.configs.values import AlphaIs
from lbm_lora.errors import ConfigError
from lbm_lora.files import Outputs
from lbm_lora.hub import localized
from lbm_lora.model.baseline import BASE_MARK, ORIGIN_KEY
from lbm_lora.model.constants import has_lbm_unet, has_sdxl_vae
from lbm_lora.model.resolve import config_beside, own_values
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report.inspection import (
    KNOWN,
    PAGE,
    CheckpointFacts,
    FileFacts,
    Inspection,
    adapter_difference,
    adapter_facts,
    checkpoint_difference,
    checkpoint_facts,
    denoiser_of,
    file_facts,
    fit_of,
    read_as_lora,
    write_page,
)


def run(config: InspectConfig, progress: Progress = SILENT) -> Inspection:
    """Inspect one file, or compare two.

    Raises:
        InputError: a file cannot be read; see `lbm_lora.errors`.
        ConfigError: there are more than two files.
    """
    if not 1 <= len(config.files) <= 2:
        raise ConfigError(f"inspect takes one file or two, got {len(config.files)}.")
    config = localized(config, progress)
    check_output(config)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_checkpoint(path)) for path in config.files]
        base = stack.enter_context(open_checkpoint(config.base_model_path)) if config.base_model_path else None
        found = inspected(opened, base, config.lora_alpha_is, progress)
    return found if config.report is None else replace(found, written=(write_page(found, config.report),))


run_inspect = run
"""Its name on the public page."""


def check_output(config: InspectConfig) -> None:
    """Refuse to write the page over an input, or over a file of somebody else.

    Raises:
        OutputError: in both cases.
    """
    if config.report is not None:
        outputs = Outputs(overwrite=config.overwrite).reads(*config.files, config.base_model_path)
        outputs.writes(config.report / PAGE, "the page").check()


def inspected(
    files: Sequence[Checkpoint], base: Checkpoint | None, alpha_is: AlphaIs, progress: Progress = SILENT
) -> Inspection:
    """Inspect one open file, or compare two.

    Args:
        base: checkpoint that a LoRA among them may have been made from.
    """
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
    facts: list[FileFacts] = []
    for file, lora, found in zip(files, loras, checkpoints, strict=True):
        plain = file_facts(file, lora)
        adapter = adapter_facts(lora, plain.nbytes, known, progress) if isinstance(lora, Adapter) else None
        facts.append(replace(plain, adapter=adapter, checkpoint=found[0] if found else None))
    adapters = [lora for lora in loras if isinstance(lora, Adapter)]
    against = [
        (denoiser_of(file), found[1]) for file, found in zip(files, checkpoints, strict=True) if found is not None
    ]
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
    file: Checkpoint, known: Mapping[str, str], progress: Progress
) -> tuple[CheckpointFacts, Fingerprint] | None:
    """The facts of a checkpoint; None for a file of anything else."""
    kind = kind_of(file.specs, file.metadata)
    if not file.specs or (kind is not None and kind.role != "network"):
        return None
    is_exact_base = BASE_MARK in (file.metadata.get(ORIGIN_KEY), file.extra.get(ORIGIN_KEY))
    return checkpoint_facts(file, known, is_exact_base=is_exact_base, config=_config_of(file), progress=progress)


def _config_of(file: Checkpoint) -> str:
    """Where the configuration of a checkpoint's networks comes from; see `resolve_config`."""
    if own_values(file):
        return "in the file"
    beside = None if file.in_memory else config_beside(file.path)
    if beside is not None:
        return f"{beside.name} next to it"
    if has_lbm_unet(file.specs) and has_sdxl_vae(file.specs):
        return "not in the file or next to it; LBM's own, by its shapes"
    return "not in the file or next to it"
