"""LoRA for Latent Bridge Matching (LBM): exact base, extraction, validation, inference.

    import lbm_lora

    lora = lbm_lora.extract(base, tuned, rank=32)  # paths, open checkpoints or state dicts
    lora.save("lora.safetensors")
    report = lbm_lora.validate(base, tuned, lora)

    pipe = lbm_lora.LBMPipeline.from_checkpoint(base)  # a pipeline of diffusers
    pipe.load_lora_weights(lora)
    image = pipe(photo).images[0]

Each command is a function of Python values: `compress`, `make_base`, `extract`, `calibrate`, `refine`, `resize`,
`validate`, `fuse`, `merge`, `convert`, `infer`, `train`, `pack_data`, `check_data`, `layers`, `inspect`, `push`. Its
options are those of the command, and nothing is written unless a path is given for it.

Importing the package loads no torch; the first use of a name does.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbm_lora.adapter import Adapter as Adapter
    from lbm_lora.adapter import LoraModule as LoraModule
    from lbm_lora.adapter import save_adapter as save_adapter
    from lbm_lora.apply import ScaledAdapter as ScaledAdapter
    from lbm_lora.apply import fuse_module as fuse_module
    from lbm_lora.apply import inject as inject
    from lbm_lora.checkpoint import Checkpoint as Checkpoint
    from lbm_lora.errors import AdapterError as AdapterError
    from lbm_lora.errors import CheckpointError as CheckpointError
    from lbm_lora.errors import ConfigError as ConfigError
    from lbm_lora.errors import DataError as DataError
    from lbm_lora.errors import HubError as HubError
    from lbm_lora.errors import ImageError as ImageError
    from lbm_lora.errors import InputError as InputError
    from lbm_lora.errors import LbmLoraError as LbmLoraError
    from lbm_lora.errors import MissingExtraError as MissingExtraError
    from lbm_lora.errors import OutputError as OutputError
    from lbm_lora.errors import PairingError as PairingError
    from lbm_lora.errors import PatternError as PatternError
    from lbm_lora.errors import QualityError as QualityError
    from lbm_lora.errors import WrongBaseError as WrongBaseError
    from lbm_lora.hub import load_adapter as load_adapter
    from lbm_lora.hub import open_checkpoint as open_checkpoint
    from lbm_lora.model.build import LBMModel as LBMModel
    from lbm_lora.model.build import load_model as load_model
    from lbm_lora.model.pipeline import LBMPipeline as LBMPipeline
    from lbm_lora.progress import SILENT as SILENT
    from lbm_lora.progress import LbmLoraWarning as LbmLoraWarning
    from lbm_lora.progress import Progress as Progress
    from lbm_lora.verbs.adapters import CombinedAdapter as CombinedAdapter
    from lbm_lora.verbs.adapters import MeasuredAdapter as MeasuredAdapter
    from lbm_lora.verbs.adapters import RefinedAdapter as RefinedAdapter
    from lbm_lora.verbs.adapters import ResizedAdapter as ResizedAdapter
    from lbm_lora.verbs.base import make_base as make_base
    from lbm_lora.verbs.calibrate import calibrate as calibrate
    from lbm_lora.verbs.compress import compress as compress
    from lbm_lora.verbs.convert import convert as convert
    from lbm_lora.verbs.data_check import check_data as check_data
    from lbm_lora.verbs.data_pack import pack_data as pack_data
    from lbm_lora.verbs.doctor import doctor as doctor
    from lbm_lora.verbs.extract import extract as extract
    from lbm_lora.verbs.extract import extract_several as extract_several
    from lbm_lora.verbs.fuse import fuse as fuse
    from lbm_lora.verbs.infer import infer as infer
    from lbm_lora.verbs.inspect import inspect as inspect
    from lbm_lora.verbs.layers import layers as layers
    from lbm_lora.verbs.merge import merge as merge
    from lbm_lora.verbs.push import push as push
    from lbm_lora.verbs.refine import refine as refine
    from lbm_lora.verbs.resize import resize as resize
    from lbm_lora.verbs.resize import resize_several as resize_several
    from lbm_lora.verbs.train import train as train
    from lbm_lora.verbs.validate import validate as validate
    from lbm_lora.verbs.validate import validate_outputs as validate_outputs

__version__ = "0.1.0"

_HOMES = {
    "adapter": "Adapter LoraModule save_adapter",
    "apply": "ScaledAdapter fuse_module inject",
    "checkpoint": "Checkpoint",
    "errors": "AdapterError CheckpointError ConfigError DataError HubError ImageError InputError LbmLoraError "
    "MissingExtraError OutputError PairingError PatternError QualityError WrongBaseError",
    "hub": "load_adapter open_checkpoint",
    "model.build": "LBMModel load_model",
    "model.pipeline": "LBMPipeline",
    "progress": "SILENT LbmLoraWarning Progress",
    "verbs.adapters": "CombinedAdapter MeasuredAdapter RefinedAdapter ResizedAdapter",
    "verbs.calibrate": "calibrate",
    "verbs.extract": "extract extract_several",
    "verbs.base": "make_base",
    "verbs.compress": "compress",
    "verbs.convert": "convert",
    "verbs.data_check": "check_data",
    "verbs.data_pack": "pack_data",
    "verbs.doctor": "doctor",
    "verbs.fuse": "fuse",
    "verbs.infer": "infer",
    "verbs.inspect": "inspect",
    "verbs.layers": "layers",
    "verbs.merge": "merge",
    "verbs.push": "push",
    "verbs.resize": "resize resize_several",
    "verbs.refine": "refine",
    "verbs.train": "train",
    "verbs.validate": "validate validate_outputs",
}
"""Module -> the public names that are loaded from it on first use (PEP 562); a test compares them with those above."""

_MODULES = {name: f"lbm_lora.{module}" for module, names in _HOMES.items() for name in names.split()}
__all__ = ["__version__", *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'lbm_lora' has no attribute '{name}'")
    globals()[name] = value = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
