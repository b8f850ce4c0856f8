"""Apply adapters to checkpoints and live models (layer L3)."""

from lbm_lora.apply.checks import Fit, check_base, check_fit
from lbm_lora.apply.fuse import ScaledAdapter, fused, fused_tensors
from lbm_lora.apply.live import Fused, Injection, add_factors, fuse_module, inject
from lbm_lora.apply.sdxl import Adapted, adapted_to_lbm
from lbm_lora.apply.stack import AppliedAdapter, fitting_adapters, scales_for
