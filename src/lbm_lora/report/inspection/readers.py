"""Which programs read a LoRA file as it is, and what to convert it to for the others.

Who reads which format is said once, in `adapter.formats.readers`; here is what becomes of a certain file.
"""

import torch

from lbm_lora.adapter import Adapter
from lbm_lora.adapter.formats import WISHES
from lbm_lora.adapter.formats.names import is_norm
from lbm_lora.adapter.formats.readers import READERS, Program
from lbm_lora.configs.values import ForeignFormat
from lbm_lora.errors import plural
from lbm_lora.factorize import PACKED
from lbm_lora.naming import ParamName, leaf_of, module_of
from lbm_lora.report.inspection.adapter_values import Reader

_OTHERS: dict[Program, tuple[ForeignFormat, str]] = {
    "ComfyUI": ("comfyui", "it ignores the keys: the base's image, with warnings in the log"),
    "diffusers": ("diffusers", "load_lora_adapter finds no keys of its own"),
    "PEFT": ("peft", "it needs adapter_config.json and keys under base_model.model."),
    "LyCORIS": ("lycoris", "no layer matches"),
}
"""Other program -> its own format, and what it does with a file of one that it does not read."""


def readers_of(adapter: Adapter) -> tuple[Reader, ...]:
    """Return what each program makes of an adapter's file, in the format that it was read from."""
    return (Reader(name="lbm-lora", reads="all", note=""), *(_reader(adapter, program) for program in _OTHERS))


def _reader(adapter: Adapter, program: Program) -> Reader:
    if adapter.dtype == PACKED:
        return _not_read(adapter, program, "it does not know packed factors")
    if adapter.dtype == torch.int8:
        return _not_read(adapter, program, "it does not know factors in 8 bits")
    found = next((reader for reader in READERS[adapter.file_format] if reader.program == program), None)
    if found is None:
        return _not_read(adapter, program, _OTHERS[program][1])
    if program == "diffusers":
        return _diffusers(adapter, found.note)
    return Reader(name=program, reads="all", note=found.note)


def _diffusers(adapter: Adapter, note: str) -> Reader:
    if adapter.file_format != "diffusers":
        if adapter.dense:
            dense = plural(len(adapter.dense), "dense delta")
            return _not_read(adapter, "diffusers", f"its SDXL converter stops at {dense}")
        return Reader(name="diffusers", reads="all", note=note)
    strange = _not_of_layers(adapter)
    if strange:
        note = f"it ignores {plural(len(strange), 'dense delta')} of norms or of layers without factors"
        return Reader(name="diffusers", reads="part", note=note)
    ranks = {module.rank for module in adapter.modules.values()}
    # reading takes padding away, so the ranks in the file may be equal
    note = "before 0.40 only if padded to one rank" if len(ranks) > 1 else ""
    return Reader(name="diffusers", reads="all", note=note)


def _not_of_layers(adapter: Adapter) -> list[ParamName]:
    """Return the dense deltas that are neither a matrix, which the file has as factors, nor the bias of `lora_B`."""
    matrices = {module_of(name) for name in adapter.dense if leaf_of(name) == "weight" and not is_norm(name)}
    layers = matrices | set(adapter.modules)
    return [name for name in adapter.dense if is_norm(name) or module_of(name) not in layers]


def _not_read(adapter: Adapter, program: Program, note: str) -> Reader:
    own = _OTHERS[program][0]
    return Reader(name=program, reads="nothing", note=note, convert_to=own, options=_options(adapter, own))


def _options(adapter: Adapter, to: ForeignFormat) -> str:
    """Return the options with which `convert` writes a format: those for biases and norms that it could not hold."""
    has_norms = any(map(is_norm, adapter.dense))
    has_biases = any(leaf_of(name) == "bias" and not is_norm(name) for name in adapter.dense)
    asked = [("biases", WISHES[to].biases, has_biases), ("norms", WISHES[to].norms, has_norms)]
    return " ".join(
        [f"--to {to}", *(f"--{name} {value}" for name, value, is_there in asked if is_there and value != "keep")]
    )
