"""The `lora_scale` of each of several adapters."""

import math
from collections.abc import Sequence
from pathlib import Path

from lbm_lora.errors import ConfigError, listing


def scales_for(paths: Sequence[Path], scales: Sequence[float]) -> tuple[float, ...]:
    """One factor per path: the given ones, or the only one for all.

    Raises:
        ConfigError: a factor is not finite, or their number fits neither case.
    """
    if not all(math.isfinite(scale) for scale in scales):
        raise ConfigError(f"--lora_scale must be a number, not {listing(map(str, scales))}.")
    if len(scales) == 1:
        return tuple(scales) * len(paths)
    if len(scales) != len(paths):
        raise ConfigError(
            f"--lora_scale has {len(scales)} values for {len(paths)} LoRAs. Give one for all, or one for each."
        )
    return tuple(scales)
