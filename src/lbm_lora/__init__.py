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
`run_extract(ExtractConfig(...))` and its like are the commands themselves, from files to files.

The names of this page stand in `__init__.pyi`, the stub that type checkers read, and nowhere else. Importing the
package loads no torch; the first use of a name does.
"""

import ast
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"


def _homes() -> dict[str, str]:
    """Public name -> the module that it is imported from."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports if node.module for alias in node.names}


_HOMES = _homes()
__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lbm_lora' has no attribute '{name}'")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
