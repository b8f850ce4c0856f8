"""Check once, when a LoRA is read, that all its numbers are finite: a delta of NaN would spread to every output."""

import torch

from lbm_lora.adapter.module import Adapter, LoraModule
from lbm_lora.blocks import is_finite
from lbm_lora.errors import AdapterError, listing

_LARGEST = torch.finfo(torch.float32).max


def check_finite(adapter: Adapter) -> Adapter:
    """Return the adapter.

    Raises:
        AdapterError: a factor, an alpha or a dense delta holds NaN or infinite values; names them.
    """
    bad = [str(module.name) for module in adapter.modules.values() if not _is_finite(module)]
    bad += [str(name) for name, delta in adapter.dense.items() if not is_finite(delta)]
    if bad:
        raise AdapterError(
            f"{adapter.label}: {len(bad)} of {len(adapter)} deltas hold NaN or infinite values: {listing(bad)}. "
            "The file is damaged, or its training diverged."
        )
    return adapter


def _is_finite(module: LoraModule) -> bool:
    """Return whether a module's numbers are finite as files store them: alpha in fp32."""
    return abs(module.alpha) <= _LARGEST and is_finite(module.up) and is_finite(module.down)
