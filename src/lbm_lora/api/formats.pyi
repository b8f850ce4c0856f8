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
        biases: What becomes of changed biases: keep them or fail, lora_bias (the bias of PEFT's lora_B), replace
            those of the base, or drop them.
        norms: What becomes of changed norms: keep them or fail, replace those of the base, or drop them.
        save_precision: Store the LoRA in this precision. Default: as it is. Factors in int8, which only the native
            format has, become float in others.
        rank: Approximate matrices of a higher rank at this one, and report the error: for LoHa, LoKr and dense
            matrices, whose exact form is large. Default: exact.
        lora_alpha_is: Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.

    Returns:
        The files and their contents: what was left out, and the error of what was approximated.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    ...
