"""The files behind a path that a command is given: shards, twins, configurations, a folder's files.

None of them may be an output of the same command (`lbm_lora.file_plan`).
"""

from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR
from typing import cast

from lbm_lora.ownership import RUN_LINE, has_factors_of_peft, is_base, is_ours
from lbm_lora.plain_text import parse_json, read_text
from lbm_lora.regular_file import status_of

CONTAINERS = (".safetensors", ".ckpt")
"""A base is written in both, with the same tensors."""
_WEIGHTS = (*CONTAINERS, ".bin", ".pt", ".pth")
_INDEX = ".index.json"
_LORAS = {"adapter_model", "pytorch_lora_weights"}  # read from a folder unless it holds a native LoRA
_CONFIGS = ("config.yaml", "config.json", "model_index.json", "adapter_config.json", "scheduler_config.json")
_NETWORKS = ("unet", "vae", "scheduler")  # folders of a model of diffusers


def files_behind(path: Path) -> Iterator[Path]:
    """Yield the files that a path stands for, and those that are read along with it; not all of them need exist.

    Other files of a model's folder may be outputs: reports and LoRAs are often kept there, in folders of their own.
    """
    found = status_of(path)
    if found is not None and S_ISDIR(found.st_mode):
        for folder in (path, *(path / name for name in _NETWORKS)):
            for one in _listed(folder):
                if one.suffix in _WEIGHTS or one.name in _CONFIGS or one.name.endswith(_INDEX):
                    yield one
        yield from _configurations(path)
        return
    yield path
    if path.suffix in CONTAINERS:
        yield from (path.with_suffix(suffix) for suffix in CONTAINERS)
    if path.suffix in _WEIGHTS or path.name.endswith(_INDEX):
        yield from _configurations(path.parent)
    if path.suffix in _WEIGHTS:
        yield from (twin for twin in map(path.with_suffix, _WEIGHTS) if is_base(twin))
    if path.stem == "adapter_model" or (path.suffix in _WEIGHTS and has_factors_of_peft(path)):
        yield path.with_name("adapter_config.json")
    if path.name.endswith(_INDEX):
        try:
            names = cast(dict[str, str], parse_json(read_text(path))["weight_map"]).values()
            yield from (path.parent / name for name in set(names))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # whoever reads the index says what is wrong with it


def _configurations(folder: Path) -> Iterator[Path]:
    """Yield what may configure the checkpoints in a folder: the config.yaml, or the only other one. No run's does."""
    found = [one for one in _listed(folder) if one.suffix == ".yaml" and not one.name.endswith("_config.yaml")]
    named = folder / "config.yaml"
    if named in found and not is_ours(named, RUN_LINE):
        yield named
        return
    others = [one for one in found if one != named]
    if len(others) == 1:
        yield others[0]


def has_one_checkpoint(folder: Path) -> bool:
    """Return whether a folder stands for the one checkpoint in it, or for a LoRA that is read if no other is there."""
    files = _listed(folder)
    if any(one.name.endswith(_INDEX) for one in files):
        return False
    found = ({one.stem for one in files if one.suffix == suffix} for suffix in (*CONTAINERS, ".bin"))
    stems = next(filter(None, found), set[str]())  # the first of them that is there is read
    return bool(stems) and len(stems - _LORAS) <= 1


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (OSError, ValueError):
        return []
