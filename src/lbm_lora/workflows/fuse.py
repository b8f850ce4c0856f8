"""Add adapters to a checkpoint's weights: the verb `fuse`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lbm_lora.adapter import Adapter
from lbm_lora.apply import AppliedAdapter, ScaledAdapter, fitting_adapters, fused_tensors
from lbm_lora.checkpoint import Checkpoint, SafetensorsWriter, TorchWriter, open_checkpoint
from lbm_lora.configs.fuse import FuseConfig
from lbm_lora.errors import ConfigError, Option, OutputError
from lbm_lora.files import FUSED, MARK_KEY, Outputs, written_bytes
from lbm_lora.hub import localized
from lbm_lora.model.baseline import ORIGIN_KEY
from lbm_lora.model.resolve import CKPT_CONTAINERS, METADATA_KEY, ckpt_entries, own_values
from lbm_lora.naming import DENOISER_PREFIX
from lbm_lora.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class FuseResult:
    """Written checkpoint."""

    output: Path
    nbytes: int
    changed: int
    """Tensors with at least one delta."""
    tensors: int
    """All tensors in the file."""
    adapters: tuple[AppliedAdapter, ...]


def run(config: FuseConfig, progress: Progress = SILENT) -> FuseResult:
    """Add LoRAs to the weights of a checkpoint, and write it to `save_to`.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    config = localized(config, progress)
    check_output(config)
    with open_checkpoint(config.base_model_path) as checkpoint:
        adapters, applied = read_adapters(config, checkpoint, config.lora_path, progress)
        write(config, checkpoint, adapters, progress)
        changed = {name for scaled in adapters for name, scale in scaled.scales.items() if scale}
        return FuseResult(
            output=config.save_to,
            nbytes=written_bytes(config.save_to),
            changed=len(changed),
            tensors=len(checkpoint.specs),
            adapters=applied,
        )


run_fuse = run
"""Its name on the public page."""


def check_output(config: FuseConfig) -> None:
    """Refuse an output that is also an input, a file of somebody else, or of no kind that holds a checkpoint."""
    if config.save_to.suffix not in (".safetensors", ".ckpt"):
        raise OutputError(
            Option("save_to"), f" {config.save_to}: a fused checkpoint is a .safetensors or a .ckpt file."
        )
    Outputs(overwrite=config.overwrite).reads(config.base_model_path, *config.lora_path).writes(config.save_to).check()


def read_adapters(
    config: FuseConfig, checkpoint: Checkpoint, loras: Sequence[Path | Adapter], progress: Progress
) -> tuple[list[ScaledAdapter], tuple[AppliedAdapter, ...]]:
    """Return the LoRAs, checked against the checkpoint; see `fitting_adapters`.

    Raises:
        ConfigError: there are none.
    """
    if not loras:
        raise ConfigError(Option("lora_path"), " names no file, so there is nothing to fuse. Give at least one LoRA.")
    return fitting_adapters(
        checkpoint.component(),
        loras,
        config.lora_scale,
        alpha_is=config.lora_alpha_is,
        crop=config.crop,
        allow_other_base=config.allow_other_base,
        allow_unmatched=config.allow_unmatched,
        progress=progress,
    )


def fused_entries(
    checkpoint: Checkpoint, adapters: Sequence[ScaledAdapter], progress: Progress
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor by its key, with the adapters added."""
    progress.start(len(checkpoint.specs), "fusing")
    for entry in fused_tensors(checkpoint, checkpoint.component().prefix, adapters):
        yield entry
        progress.advance()


def write(config: FuseConfig, checkpoint: Checkpoint, adapters: Sequence[ScaledAdapter], progress: Progress) -> None:
    """Write the fused checkpoint, tensor by tensor."""
    is_lbm = checkpoint.component().prefix == DENOISER_PREFIX
    with _writer(config.save_to, checkpoint, is_lbm=is_lbm) as writer:
        for key, tensor in fused_entries(checkpoint, adapters, progress):
            writer.write(key, tensor)


def _writer(path: Path, checkpoint: Checkpoint, *, is_lbm: bool) -> SafetensorsWriter | TorchWriter:
    """Open a writer for the container that the suffix names, with the checkpoint's configuration.

    Its mark of origin is dropped: with a LoRA added, it is no longer an exact base.
    """
    values = own_values(checkpoint) if is_lbm else None
    if path.suffix == ".safetensors":
        kept = {key: value for key, value in checkpoint.metadata.items() if key not in (ORIGIN_KEY, MARK_KEY)}
        metadata = {MARK_KEY: FUSED, **kept}  # first: others' values may be longer than what is searched for a mark
        if values:
            metadata.setdefault(METADATA_KEY, json.dumps(values))
        return SafetensorsWriter(path, checkpoint.specs, metadata=metadata)
    entries = {**checkpoint.extra, **(ckpt_entries(values) if values else {})}
    entries.pop(ORIGIN_KEY, None)
    containers = CKPT_CONTAINERS if is_lbm else {"model_state_dict": ""}
    return TorchWriter(path, checkpoint.specs, kind=FUSED, extra=entries, containers=containers)
