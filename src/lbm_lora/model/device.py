"""Choose the device of a command."""

import torch

from lbm_lora.errors import ConfigError, Option
from lbm_lora.progress import warn


def resolve_device(name: str = "auto", *, fp64: str = "") -> torch.device:
    """Return the device for a `--device` flag: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    `auto` is CUDA if available, else the CPU. A device that this machine lacks gives a warning and the CPU.
    mps is untested.

    Args:
        fp64: why the work needs fp64, if it does: "the sums need".
    """
    if fp64 and name.startswith("mps"):
        raise ConfigError(Option("device"), f" {name}: {fp64} fp64, which mps does not support. Use cpu.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(Option("device"), f" must be one of auto, cpu, cuda, cuda:N, mps, got '{name}'.")
    if device.type == "cuda":
        is_there = torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    else:
        is_there = device.type != "mps" or torch.backends.mps.is_available()
    if is_there:
        return device
    warn(Option("device"), f" {name} is not available on this machine. Using the CPU.")
    return torch.device("cpu")
