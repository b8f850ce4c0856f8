"""lbm-lora's nodes for ComfyUI. The nodes themselves are in the package lbm-lora (`lbm_lora.comfy`).

The package is the installed one, else that of the repository which this folder is in.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

_SOURCE = Path(__file__).resolve().parents[2] / "src"

if find_spec("lbm_lora") is None and (_SOURCE / "lbm_lora").is_dir():
    sys.path.append(str(_SOURCE))
if find_spec("lbm_lora") is None:
    raise ImportError(f'lbm-lora is not installed. Run: {sys.executable} -m pip install "lbm-lora[comfy]"')

from lbm_lora.comfy.extension import comfy_entrypoint  # noqa: E402

__all__ = ["comfy_entrypoint"]
