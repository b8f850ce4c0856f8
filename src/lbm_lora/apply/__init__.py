"""Apply adapters to checkpoints and live models."""

from lbm_lora.apply.checks import AppliedAdapter, check_base, check_fit, fitting_adapters, scales_for
from lbm_lora.apply.fuse import ScaledAdapter, fused, fused_tensors
from lbm_lora.apply.live import Fused, Injection, add_factors, fuse_module, inject
from lbm_lora.apply.sdxl import adapted_to_lbm
