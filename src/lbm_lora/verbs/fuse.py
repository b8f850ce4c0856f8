"""Add LoRAs to a checkpoint's weights: the verb `fuse`."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.errors import ConfigError, Option, OutputError
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import (
    AllowOtherBase,
    AllowUnmatched,
    Base,
    Crop,
    Lora,
    LoraAlphaIs,
    LoraScale,
    Output,
    Overwrite,
    Several,
)
from lbm_lora.verbs.verb import EVERYDAY, verb

if TYPE_CHECKING:
    from torch import Tensor

    from lbm_lora.apply import AppliedAdapter
    from lbm_lora.checkpoint import Checkpoint, SafetensorsWriter, TorchWriter


@dataclass(frozen=True, kw_only=True)
class FuseResult:
    """Written checkpoint."""

    output: Path
    nbytes: int
    changed: int
    """Tensors with at least one delta."""
    tensors: int
    """All tensors in the file."""
    adapters: "tuple[AppliedAdapter, ...]"


def _text(result: FuseResult, _: bool) -> str:
    from lbm_lora.report.wording import plural
    from lbm_lora.verbs.lines import file_lines

    changed = f"{result.changed:,} of {plural(result.tensors, 'tensor')} changed"
    return f"Fused: {changed}, the others copied byte for byte.\n{file_lines(result.output)}"


@verb(
    "add LoRAs to a checkpoint's weights",
    group=EVERYDAY,
    examples=(
        "lbm-lora fuse --base_model_path base.safetensors --lora_path lora.safetensors --save_to fused.safetensors",
        "lbm-lora fuse --base_model_path base.safetensors --lora_path a.safetensors b.safetensors --lora_scale 1 0.5 "
        "--save_to fused.ckpt",
    ),
    text=_text,
)
def fuse(
    base: Base,
    lora: Several[Lora],
    *,
    overwrite: Overwrite = False,
    save_to: Output = None,
    lora_scale: Several[LoraScale] = (1.0,),
    lora_alpha_is: LoraAlphaIs = "auto",
    crop: Crop = False,
    allow_other_base: AllowOtherBase = False,
    allow_unmatched: AllowUnmatched = False,
    progress: Progress = SILENT,
) -> "tuple[dict[str, Tensor], FuseResult]":
    """Add LoRAs to a checkpoint's weights and write the result, tensor by tensor.

    Args:
        base: Checkpoint that the LoRAs were made for; may be user/repo on the hub.
        lora: LoRAs, files or user/repo on the hub. All of them are added.
        save_to: Write the checkpoint here: .safetensors or .ckpt.
        allow_unmatched: Continue even if keys of a LoRA match nothing in the checkpoint.

    Returns:
        Every tensor of the checkpoint by its key; with `save_to` they are views of the file.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    from lbm_lora.apply import fitting_adapters, fused_tensors
    from lbm_lora.files import Outputs, written_bytes
    from lbm_lora.hub import open_checkpoint
    from lbm_lora.verbs.values import inputs, listed, several

    loras = listed(lora)
    if not loras:
        raise ConfigError(Option("lora_path"), " names no file, so there is nothing to fuse. Give at least one LoRA.")
    if save_to is not None:
        _check_suffix(Path(save_to))
        Outputs(overwrite=overwrite).reads(*inputs(base, *loras)).writes(Path(save_to)).check()
    with open_checkpoint(base, label="base state dict") as checkpoint:
        component = checkpoint.component()
        adapters, applied = fitting_adapters(
            component,
            loras,
            several(lora_scale),
            alpha_is=lora_alpha_is,
            crop=crop,
            allow_other_base=allow_other_base,
            allow_unmatched=allow_unmatched,
            progress=progress,
        )
        progress.start(len(checkpoint.specs), "fusing")
        tensors: dict[str, Tensor] = {}
        with nullcontext() if save_to is None else _writer(Path(save_to), checkpoint) as writer:
            for key, tensor in fused_tensors(checkpoint, component.prefix, adapters):
                if writer is None:
                    tensors[key] = tensor
                else:
                    writer.write(key, tensor)
                progress.advance()
        result = FuseResult(
            output=Path(save_to or "fused.safetensors"),
            nbytes=0 if save_to is None else written_bytes(Path(save_to)),
            changed=len({name for scaled in adapters for name, scale in scaled.scales.items() if scale}),
            tensors=len(checkpoint.specs),
            adapters=applied,
        )
    if save_to is not None:
        with open_checkpoint(save_to) as written:
            tensors = written.state_dict()
    return tensors, result


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".safetensors", ".ckpt"):
        raise OutputError(Option("save_to"), f" {path}: a fused checkpoint is a .safetensors or a .ckpt file.")


def _writer(path: Path, checkpoint: "Checkpoint") -> "SafetensorsWriter | TorchWriter":
    """Open a writer for the container that the suffix names, with the checkpoint's configuration.

    Its mark of origin is dropped: with a LoRA added, it is no longer an exact base.
    """
    from lbm_lora.checkpoint import SafetensorsWriter, TorchWriter
    from lbm_lora.files import FUSED, MARK_KEY
    from lbm_lora.model.baseline import ORIGIN_KEY
    from lbm_lora.model.resolve import CKPT_CONTAINERS, METADATA_KEY, ckpt_entries, own_values
    from lbm_lora.naming import DENOISER_PREFIX

    is_lbm = checkpoint.component().prefix == DENOISER_PREFIX
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
