"""Any network, as a module and a callable that runs it over samples: validate_outputs."""

from typing import TYPE_CHECKING

from torch import nn

from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.hub import open_checkpoint
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.values import LoraLike, adapter_of

if TYPE_CHECKING:
    from lbm_lora.fidelity.network import NetworkErrors, Run


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
        run: runs `tuned` over samples, and yields its output for each; see `calibrate`.
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
