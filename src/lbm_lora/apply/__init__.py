"""Adapters onto checkpoints and live models (layer L3)."""

from lbm_lora.apply.fit import Fit, check_base, check_fit
from lbm_lora.apply.fuse import ScaledAdapter, fused, fused_tensors
from lbm_lora.apply.live import Fused, Injection, fuse_module, inject

__all__ = [
    "Fit",
    "Fused",
    "Injection",
    "ScaledAdapter",
    "check_base",
    "check_fit",
    "fuse_module",
    "fused",
    "fused_tensors",
    "inject",
]
