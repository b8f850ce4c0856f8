"""LoRA for Latent Bridge Matching (LBM): exact base, extraction, validation, inference.

    import lbm_lora

    with lbm_lora.open_checkpoint("model.safetensors") as checkpoint: ...
    adapter = lbm_lora.load_adapter("lora.safetensors")
    result = lbm_lora.run_extract(lbm_lora.ExtractConfig(base_model_path=..., tuned_model_path=..., save_to=...))

Each command is a function that takes a frozen config and returns a typed result: `run_base`, `run_extract`,
`run_validate`, `run_infer`, `run_fuse`, `run_layers`. Importing this package loads no torch; the first use of a name
does.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbm_lora.adapter import Adapter as Adapter
    from lbm_lora.adapter import LoraModule as LoraModule
    from lbm_lora.adapter import load_adapter as load_adapter
    from lbm_lora.adapter import save_adapter as save_adapter
    from lbm_lora.apply import ScaledAdapter as ScaledAdapter
    from lbm_lora.apply import fuse_module as fuse_module
    from lbm_lora.apply import inject as inject
    from lbm_lora.checkpoint import open_checkpoint as open_checkpoint
    from lbm_lora.configs.base import BaseConfig as BaseConfig
    from lbm_lora.configs.extract import ExtractConfig as ExtractConfig
    from lbm_lora.configs.fuse import FuseConfig as FuseConfig
    from lbm_lora.configs.infer import InferConfig as InferConfig
    from lbm_lora.configs.layers import LayersConfig as LayersConfig
    from lbm_lora.configs.validate import ValidateConfig as ValidateConfig
    from lbm_lora.errors import InputError as InputError
    from lbm_lora.errors import LbmLoraError as LbmLoraError
    from lbm_lora.errors import QualityError as QualityError
    from lbm_lora.model.build import LBMModel as LBMModel
    from lbm_lora.model.build import load_model as load_model
    from lbm_lora.model.pipeline import LBMPipeline as LBMPipeline
    from lbm_lora.workflows.base import run as run_base
    from lbm_lora.workflows.extract import run as run_extract
    from lbm_lora.workflows.fuse import run as run_fuse
    from lbm_lora.workflows.infer import run as run_infer
    from lbm_lora.workflows.layers import run as run_layers
    from lbm_lora.workflows.validate import run as run_validate

__version__ = "0.1.0"

_HOMES: dict[str, tuple[str, str]] = {
    "Adapter": ("adapter", "Adapter"),
    "BaseConfig": ("configs.base", "BaseConfig"),
    "ExtractConfig": ("configs.extract", "ExtractConfig"),
    "FuseConfig": ("configs.fuse", "FuseConfig"),
    "InferConfig": ("configs.infer", "InferConfig"),
    "InputError": ("errors", "InputError"),
    "LBMModel": ("model.build", "LBMModel"),
    "LBMPipeline": ("model.pipeline", "LBMPipeline"),
    "LayersConfig": ("configs.layers", "LayersConfig"),
    "LbmLoraError": ("errors", "LbmLoraError"),
    "LoraModule": ("adapter", "LoraModule"),
    "QualityError": ("errors", "QualityError"),
    "ScaledAdapter": ("apply", "ScaledAdapter"),
    "ValidateConfig": ("configs.validate", "ValidateConfig"),
    "fuse_module": ("apply", "fuse_module"),
    "inject": ("apply", "inject"),
    "load_adapter": ("adapter", "load_adapter"),
    "load_model": ("model.build", "load_model"),
    "open_checkpoint": ("checkpoint", "open_checkpoint"),
    "run_base": ("workflows.base", "run"),
    "run_extract": ("workflows.extract", "run"),
    "run_fuse": ("workflows.fuse", "run"),
    "run_infer": ("workflows.infer", "run"),
    "run_layers": ("workflows.layers", "run"),
    "run_validate": ("workflows.validate", "run"),
    "save_adapter": ("adapter", "save_adapter"),
}

__all__ = [
    "__version__",
    "Adapter",
    "BaseConfig",
    "ExtractConfig",
    "FuseConfig",
    "InferConfig",
    "InputError",
    "LBMModel",
    "LBMPipeline",
    "LayersConfig",
    "LbmLoraError",
    "LoraModule",
    "QualityError",
    "ScaledAdapter",
    "ValidateConfig",
    "fuse_module",
    "inject",
    "load_adapter",
    "load_model",
    "open_checkpoint",
    "run_base",
    "run_extract",
    "run_fuse",
    "run_infer",
    "run_layers",
    "run_validate",
    "save_adapter",
]


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lbm_lora' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"lbm_lora.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
