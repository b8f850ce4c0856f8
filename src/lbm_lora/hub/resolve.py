"""Local files for names on the hub: the one place where a path of an option becomes a path on this machine.

Options that may name a repository have the mark of `configs.marks.Checkpoint` or `Lora`. A workflow begins with
`localized(config)`; the functions for Python values and `LBMPipeline` call `local_checkpoint` and `local_lora`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pydantic import BaseModel

from lbm_lora.adapter.adapter_file import NAMES, PEFT_CONFIG
from lbm_lora.configs.marks import HUB_CHECKPOINT, HUB_LORA, Mark
from lbm_lora.errors import HubError, listing
from lbm_lora.hub.names import HubName, hub_name
from lbm_lora.hub.repository import Repository, open_repository
from lbm_lora.progress import SILENT, Progress

C = TypeVar("C")

_OURS = "lbm_lora_format"
"""In the header of a native LoRA; an export for another program has none."""

_INDEX = ".safetensors.index.json"


def localized(config: C, progress: Progress = SILENT) -> C:
    """Return a config whose checkpoints and LoRAs are local: those on the hub are fetched, or found in the cache.

    A base that would be made where it is missing stays as it is.

    Args:
        config: a frozen dataclass or a pydantic model.

    Raises:
        HubError: a repository or a file does not exist, may not be read, or cannot be reached.
        ConfigError: a path starts with `hf://` and is not a name.
    """
    changed: dict[str, Any] = {}
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        local = next((_LOCAL[mark] for mark in _marks(hint) if mark in _LOCAL), None)
        value: Any = getattr(config, name, None)
        if local is None or not value or (name == "base_model_path" and _makes_base(config)):
            continue
        found = tuple(local(one, progress) for one in value) if isinstance(value, tuple) else local(value, progress)
        if found != value:
            changed[name] = found
    if not changed:
        return config
    if isinstance(config, BaseModel):
        return config.model_copy(update=changed)
    assert is_dataclass(config)
    return cast(C, replace(cast(Any, config), **changed))


def local_lora(path: Path | str, progress: Progress = SILENT) -> Path:
    """Return the local file of a LoRA: the path itself, or that of a repository on the hub.

    Of a repository, or a folder in one, it is the only `.safetensors` file, else the only native LoRA, since an export
    may hold less; else the file that PEFT or diffusers looks for.

    Raises:
        HubError: see `localized`; or the repository has several LoRAs, or none.
    """
    name = hub_name(path)
    if name is None:
        return Path(path)
    repository = open_repository(name)
    file = name.file if name.file in repository.files else _lora_of(repository, PurePosixPath(name.file))
    config = str(PurePosixPath(file).with_name(PEFT_CONFIG))
    return repository.fetch([file, *([config] if config in repository.files else [])], progress) / file


def local_checkpoint(path: Path | str, progress: Progress = SILENT) -> Path:
    """Return the local file or folder of a checkpoint: the path itself, or that of a repository on the hub.

    Of a repository, or a folder in one, it is the file that `open_checkpoint` takes of a folder: an index with its
    shards, else the only `.safetensors`, else the only `.ckpt`. The `.yaml` files next to it are fetched too.

    Raises:
        HubError: see `localized`; or there are several checkpoints, or none.
    """
    name = hub_name(path)
    if name is None:
        return Path(path)
    repository = open_repository(name)
    if name.file in repository.files:
        file, folder = name.file, PurePosixPath(name.file).parent
    else:
        folder = PurePosixPath(name.file)
        file = _checkpoint_of(repository, folder)
    beside = [one for one in repository.files if PurePosixPath(one).parent == folder and one.endswith(".yaml")]
    stem = file.removesuffix(_INDEX)
    shards = [one for one in repository.files if file != stem and one.startswith(f"{stem}-") and _is_weights(one)]
    return repository.fetch([file, *shards, *beside], progress) / file


_LOCAL: dict[Mark, Callable[[Path | str, Progress], Path]] = {HUB_LORA: local_lora, HUB_CHECKPOINT: local_checkpoint}


def _marks(hint: Any) -> Iterator[Mark]:
    """Yield the marks anywhere in an annotation: in a union, in a tuple."""
    yield from (one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Mark))
    for part in get_args(hint):
        yield from _marks(part)


def _makes_base(config: object) -> bool:
    return getattr(config, "backbone_signature", None) is not None or getattr(config, "create_base_model", False)


def _lora_of(repository: Repository, folder: PurePosixPath) -> str:
    """Return the one LoRA of a folder, by the rule of `load_adapter`."""
    there = _files_in(repository, folder)
    files = [file for file in there if _is_weights(file)]
    if len(files) == 1:
        return files[0]
    ours = [file for file in files if _OURS in repository.header(file)]
    known = [str(folder / name) for name in NAMES if str(folder / name) in there]
    if len(ours) == 1 or (known and not ours):
        return (ours or known)[0]
    raise _not_one(repository, "LoRAs", ours or files, ".safetensors file")


def _files_in(repository: Repository, folder: PurePosixPath) -> list[str]:
    found = [file for file in repository.files if PurePosixPath(file).parent == folder]
    if not found and folder.name:
        raise repository.missing(str(folder))
    return found


def _checkpoint_of(repository: Repository, folder: PurePosixPath) -> str:
    """Return the one checkpoint of a folder, by the rule of `open_checkpoint`."""
    there = _files_in(repository, folder)
    for suffix in (_INDEX, ".safetensors", ".ckpt"):
        found = [file for file in there if file.endswith(suffix)]
        if len(found) == 1:
            return found[0]
        if found:
            raise _not_one(repository, "checkpoints", found, "")
    raise _not_one(repository, "checkpoints", [], ".safetensors or .ckpt file")


def _not_one(repository: Repository, what: str, files: Sequence[str], kind: str) -> HubError:
    repo, there = repository.name.repo, listing(repository.files) or "no files"
    if files:
        example = HubName(repo, files[0], repository.name.revision)
        return HubError(f"{repo} on the Hugging Face hub has several {what}: {listing(files)}. Name one: {example}.")
    return HubError(f"{repo} on the Hugging Face hub has no {kind}. It holds {there}.")


def _is_weights(file: str) -> bool:
    return file.endswith(".safetensors")
