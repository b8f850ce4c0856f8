"""Made by tools/write_api_stubs.py of the functions and their configs; not to be edited."""

from lbm_lora.api.values import LoraLike
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.configs.values import FormatName
from lbm_lora.progress import Progress
from lbm_lora.workflows import convert as convert_workflow
from pathlib import Path
from typing import Literal
import torch

def convert(
    lora: LoraLike,
    to: FormatName,
    save_to: Path | str,
    *,
    base: CheckpointLike | None = None,
    overwrite: bool = False,
    biases: Literal['keep', 'lora_bias', 'replace', 'drop'] = 'keep',
    norms: Literal['keep', 'replace', 'drop'] = 'keep',
    save_precision: Literal['float', 'fp16', 'bf16', 'int8'] | torch.dtype | None = None,
    rank: int | None = None,
    lora_alpha_is: Literal['auto', 'rank', 'file'] = 'auto',
    progress: Progress = ...,
) -> convert_workflow.ConvertResult:
    """Write a LoRA in the format of another program; see `Adapter.save` for one that needs no report.

    Args:
        lora: the LoRA: a path, its format is detected, or an adapter.
        to: the format: native, comfyui, kohya, kohya-diffusers, diffusers, peft or lycoris.
        save_to: where to write: a .safetensors file; for peft a folder.
        base: the base, for values that replace its own, and for DoRA: a path, an open checkpoint or a state dict.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        biases: What to do with changed biases: keep them, or fail if the format cannot hold them; store them as the
            bias of PEFT's lora_B (lora_bias); store the tuned values in place of the base's (replace); or drop
            them.
        norms: What to do with changed norms: keep them, or fail if the format cannot hold them; store the tuned
            values in place of the base's (replace); or drop them.
        save_precision: Store the LoRA in this precision. Default: that of the file. Only the native format holds
            int8; the others store such factors as float.
        rank: Approximate matrices of a higher rank at this rank, and report the error. For LoHa, LoKr and dense
            matrices, which are large in their exact form. Default: exact.
        lora_alpha_is: Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.

    Returns:
        The files and their contents: what was left out, and the error of what was approximated.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    ...
