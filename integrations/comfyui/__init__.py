"""lbm-lora's nodes for ComfyUI. The nodes themselves are in the package lbm-lora (`lbm_lora.comfy`).

The package is the installed one, else that of the repository which this folder is in.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
_IS_CLONE = (_REPOSITORY / "src/lbm_lora").is_dir()

if find_spec("lbm_lora") is None and _IS_CLONE:
    sys.path.append(str(_REPOSITORY / "src"))
try:
    from lbm_lora.comfy.extension import comfy_entrypoint
except ModuleNotFoundError as error:
    if str(error.name).startswith("comfy_api"):
        raise ImportError("lbm-lora's nodes need ComfyUI 0.3.64 or newer") from error
    what = f'-e "{_REPOSITORY}"' if _IS_CLONE else "lbm-lora"
    raise ImportError(
        f"lbm-lora's nodes need the Python package {error.name}. Run: {sys.executable} -m pip install {what}"
    ) from error

__all__ = ["comfy_entrypoint"]
