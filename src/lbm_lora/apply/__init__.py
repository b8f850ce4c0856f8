"""Apply adapters to checkpoints and live models (layer L3)."""

from lbm_lora.apply.checks import AppliedAdapter, Fit, check_base, check_fit, fitting_adapters, scales_for
from lbm_lora.apply.fuse import ScaledAdapter, fused, fused_tensors
from lbm_lora.apply.live import Fused, Injection, add_factors, fuse_module, inject
from lbm_lora.apply.sdxl import Adapted, adapted_to_lbm
