"""One LoRA of several: merge."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.api.adapters import CombinedAdapter, contents
from lbm_lora.api.options import Options
from lbm_lora.api.values import Images, LoraLike, image_files, listed, opened_pair, path_of
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.combine import merge_rule
from lbm_lora.configs.merge import MergeConfig
from lbm_lora.errors import ConfigError, Option
from lbm_lora.progress import SILENT, Progress
from lbm_lora.workflows import merge as merge_workflow
from lbm_lora.workflows.extract import readable

if TYPE_CHECKING:
    from lbm_lora.calibration import Statistics

_MERGE = Options(
    MergeConfig,
    hidden=("lora_path", "save_to", "calibration", "images", "base_model_path", "tuned_model_path"),
)


@_MERGE.documented
def merge(
    loras: LoraLike | Sequence[LoraLike],
    *,
    save_to: Path | str | None = None,
    calibration: "Path | str | Statistics | None" = None,
    images: Images | None = None,
    base: CheckpointLike | None = None,
    tuned: CheckpointLike | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> CombinedAdapter:
    """Merge LoRAs into one that does what all of them do together.

    Args:
        loras: the LoRAs, in any order: paths or adapters.
        save_to: write the LoRA, a .safetensors file, while it is merged; its tensors then stay in the file. None:
            nothing is written.
        calibration: statistics of a tuned model, from `calibrate` or its file: what is lost is weighed by that model's
            output. Needs `rank`, `max_size` or `max_output_error`.
        images: first fit the scales on these images, to the output of `tuned`.
        base: the checkpoint that the LoRAs were made for, to fit the scales: a path, an open checkpoint or a state
            dict.
        tuned: the fine-tuned checkpoint to come close to, likewise.
        progress: a listener.

    Returns:
        The LoRA, with its `relative_error`.

    Raises:
        WrongBaseError: the LoRAs have different bases that no chain of tuned checkpoints connects.
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    given = listed(loras)
    with ExitStack() as stack:
        sources = None if images is None else stack.enter_context(image_files(images))
        models = None
        if base is not None and tuned is not None:
            models = opened_pair(stack, base, tuned)
        elif base is not None or tuned is not None:
            raise ConfigError(Option("base"), " and ", Option("tuned"), " fit the scales together. Give both.")
        config = _MERGE.bind(
            "merge",
            options,
            lora_path=tuple(path_of(one, f"LoRA {number}") for number, one in enumerate(given, 1)),
            save_to=Path(save_to or "LoRA.safetensors"),
            calibration=_label(calibration),
            images=None if sources is None else str(sources),
            base_model_path=models[0].path if models else None,
            tuned_model_path=models[1].path if models else None,
        )
        rule = merge_rule(config)
        if save_to is not None:
            merge_workflow.check_output(config)
        read = [one if isinstance(one, Adapter) else load_adapter(one, config.lora_alpha_is) for one in given]
        scaled = merge_workflow.scaled(config, read)
        origin = merge_workflow.base_of(config, scaled)
        if models is not None:
            scaled, origin, _ = merge_workflow.fitted(config, scaled, origin, *models, readable(sources), progress)
        statistics = None if isinstance(calibration, str | Path) else calibration
        path = None if save_to is None else config.save_to
        found = merge_workflow.merged(config, rule, scaled, origin, path, statistics, progress)
    adapter = load_adapter(config.save_to) if found.adapter is None else found.adapter
    return CombinedAdapter(
        **contents(adapter),
        relative_error=found.ledger.total().relative_error,
        scales=tuple(scale.text for _, scale in scaled),
    )


def _label(calibration: "Path | str | Statistics | None") -> Path | None:
    """Return the name of the statistics in messages and metadata."""
    if calibration is None:
        return None
    return Path(calibration) if isinstance(calibration, str | Path) else Path("statistics")
