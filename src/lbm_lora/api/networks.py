"""Any network, as a module and a callable that runs it over samples: calibrate_network, validate_outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lbm_lora.api.options import Options
from lbm_lora.api.values import LoraLike, adapter_of
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.configs.calibrate import CalibrateConfig
from lbm_lora.errors import OutputError
from lbm_lora.files import Outputs
from lbm_lora.hub import open_checkpoint
from lbm_lora.progress import SILENT, Progress

if TYPE_CHECKING:
    from lbm_lora.calibration import Statistics
    from lbm_lora.fidelity.network import NetworkErrors, Run

_CALIBRATE = Options(
    CalibrateConfig,
    hidden=(
        *("tuned_model_path", "images", "save_to", "count", "size", "device", "timesteps", "torch_dtype"),
        "config_path",
    ),
    texts={
        "probes": "Measure this many random directions of the output per sample. More are slower and more accurate. "
        "Default: 4 for fewer than 16 samples, else 1.",
        "seed": "Seed for the probes and the sketches.",
    },
)


@_CALIBRATE.documented
def calibrate_network(
    module: nn.Module,
    run: "Run",
    /,
    *,
    names: str | Sequence[str] = (),
    save_to: Path | str | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> "Statistics":
    """Measure which errors a network's output is sensitive to; extract then spends its bytes on those.

    This is `calibrate(module, run)`. Embeddings, grouped convs, nn.MultiheadAttention and shared weights are
    not measured: their changes are stored dense. 1D and 3D convs always are.

    Args:
        module: the tuned network, in evaluation mode, in fp32 or bf16, on any device.
        run: yields the network's output for each sample, with its graph, in any shape:
            `def run(): for batch in data: yield module(**batch).last_hidden_state`. It is called several times and must
            yield the same samples in the same order; the first must call every layer.
        names: measure only these modules: part of a name, a glob, or re:REGEX. None: all linear layers and 2D convs.
        save_to: also write the statistics, a .safetensors file. None: nothing is written.
        progress: a listener.

    Returns:
        The statistics, for `extract(base, tuned, calibration=...)` with modules or their state dicts.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    from lbm_lora.calibration import CalibrationSettings, collect_network, save_statistics

    if save_to is not None and Path(save_to).suffix != ".safetensors":
        raise OutputError(f"save_to {save_to}: statistics are a .safetensors file.")
    config = _CALIBRATE.bind(
        "calibrate", options, tuned_model_path=Path(), images=(), save_to=Path(save_to or "statistics.safetensors")
    )
    settings = CalibrationSettings(
        probes=config.probes, seed=config.seed, dense_up_to=config.dense_up_to, sketch_rank=config.sketch_rank
    )
    if save_to is not None:
        Outputs(overwrite=config.overwrite).writes(config.save_to).check()
    chosen = (names,) if isinstance(names, str) else tuple(names)
    statistics = collect_network(module, run, settings, names=chosen, progress=progress)
    if save_to is not None:
        save_statistics(statistics, config.save_to)
    return statistics


def validate_outputs(
    base: CheckpointLike | nn.Module,
    tuned: nn.Module,
    lora: LoraLike,
    run: "Run",
    *,
    progress: Progress = SILENT,
) -> "NetworkErrors":
    """Measure the relative errors of a network's outputs with the base's weights, and with base + LoRA.

    Args:
        base: the checkpoint that the LoRA is relative to: a path, an open checkpoint, a state dict or a module.
        tuned: the tuned network, in evaluation mode. Its weights are replaced meanwhile, and put back.
        lora: the LoRA: a path or an adapter.
        run: runs `tuned` over samples, and yields its output for each; see `calibrate_network`.
        progress: a listener.

    Returns:
        The errors of each sample.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    from lbm_lora.fidelity.network import network_errors

    weights = base.state_dict() if isinstance(base, nn.Module) else base
    with open_checkpoint(weights, label="base state dict") as opened:
        component = opened.component()
        return network_errors(tuned, run, component, adapter_of(lora, "auto", component), progress)
