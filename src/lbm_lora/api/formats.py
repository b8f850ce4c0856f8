"""LoRAs in the formats of other programs: convert."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lbm_lora.adapter import save_adapter
from lbm_lora.api.options import Options
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.configs.convert import ConvertConfig
from lbm_lora.configs.values import FormatName
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.values import LoraLike, adapter_of, opened_base, path_of
from lbm_lora.workflows import convert as convert_workflow

_CONVERT = Options(ConvertConfig, hidden=("lora_path", "to", "save_to", "base_model_path"))


@_CONVERT.documented
def convert(
    lora: LoraLike,
    to: FormatName,
    save_to: Path | str,
    *,
    base: CheckpointLike | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> convert_workflow.ConvertResult:
    """Write a LoRA in the format of another program; see `Adapter.save` for one that needs no report.

    Args:
        lora: the LoRA: a path, its format is detected, or an adapter.
        to: the format: native, comfyui, kohya, kohya-diffusers, diffusers, peft or lycoris.
        save_to: where to write: a .safetensors file; for peft a folder.
        base: the base, for values that replace its own, and for DoRA: a path, an open checkpoint or a state dict.
        progress: a listener.

    Returns:
        The files and their contents: what was left out, and the error of what was approximated.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    with ExitStack() as stack:
        opened = opened_base(stack, base)
        component = None if opened is None else opened.component()
        config = _CONVERT.bind(
            "convert",
            options,
            lora_path=path_of(lora, "LoRA"),
            to=to,
            save_to=Path(save_to),
            base_model_path=None if opened is None else opened.path,
        )
        convert_workflow.check(config)
        convert_workflow.check_output(config)
        adapter = adapter_of(lora, config.lora_alpha_is, base=component)
        made = convert_workflow.converted(config, adapter, component, progress)
        wishes = convert_workflow.wishes_of(config, component)
        saved = save_adapter(made.adapter, config.save_to, format=config.to, wishes=wishes)
    return convert_workflow.result_of(config, adapter.file_format, made, saved)
