"""Read a checkpoint: tensors by name from one or several files, whatever the container, or from memory.

    with open_checkpoint(path) as checkpoint:
        denoiser = checkpoint.component()
        weight = denoiser.read("conv_in.weight")

Names and shapes are read first; bytes on demand, in the order of the file.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Protocol, cast, runtime_checkable

import torch

from lbm_lora.checkpoint.kinds import kind_of
from lbm_lora.checkpoint.safetensors_file import SafetensorsFile
from lbm_lora.checkpoint.spec import TensorSpec
from lbm_lora.checkpoint.torch_file import TorchFile
from lbm_lora.errors import CheckpointError, LbmLoraError, Option, listing, not_there
from lbm_lora.files import check_regular
from lbm_lora.naming import DENOISER_PREFIX, ParamName
from lbm_lora.text import TextError, parse_json, read_text

_INDEX = ".safetensors.index.json"
_TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
_WRAPPERS = frozenset({"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Path segments added by torch.compile, Lightning, FSDP and activation checkpointing."""

_AFTER_MODEL = frozenset({"module", "denoiser", "vae", "num_iterations", "lpips_loss", "conditioner"})
"""Names that follow `model.` in an LBM training checkpoint."""


@runtime_checkable
class _File(Protocol):
    """Interface of one file, whatever its container."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    def read(self, name: str) -> torch.Tensor: ...


class _StateDict:
    """Tensors in memory, read by name as a file is."""

    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        for key, value in tensors.items():
            if not isinstance(value, torch.Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise CheckpointError(
                    f"{path}: {key} is of type {type(value).__name__}. A state dict holds tensors by name: "
                    "give module.state_dict()."
                )
        if not tensors:
            raise CheckpointError(f"{path} holds no tensors.")
        self._tensors = tensors
        self.specs: Mapping[str, TensorSpec] = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach().cpu().contiguous()


class Checkpoint:
    """Tensors of one or several files under their normalized keys.

    Attributes:
        path: the path as given; for a state dict, its name in messages.
        in_memory: whether it is a state dict, which has no files next to it.
        files: the files that are read; none for a state dict.
        specs: key -> dtype and shape, in the order of the data.
        metadata: metadata of the `.safetensors` header (empty for a `.ckpt`).
        extra: plain entries of a `.ckpt` next to its tensors (`config`, `torch_dtype`, ...).
    """

    in_memory: bool = False

    def __init__(self, path: Path, files: Mapping[Path, _File]) -> None:
        self.path = path
        self.in_memory = any(isinstance(file, _StateDict) for file in files.values())
        self.files = () if self.in_memory else tuple(files)
        self.metadata: dict[str, str] = {}
        self.extra: dict[str, object] = {}
        self.specs: dict[str, TensorSpec] = {}
        self._places: dict[str, tuple[_File, str]] = {}
        for file in files.values():
            self.metadata.update(file.metadata)
            self.extra.update(getattr(file, "extra", {}))
            for key, key_in_file in normalized_keys(file.specs, path).items():
                if key in self.specs:
                    raise CheckpointError(f"{path}: {key} is in more than one shard. Remove one of them.")
                self.specs[key] = file.specs[key_in_file]
                self._places[key] = (file, key_in_file)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor by its key, as views of the file."""
        return {key: self.read(key) for key in self.specs}

    def read(self, key: str) -> torch.Tensor:
        """Return a tensor in its storage dtype, as a view of the file."""
        if key not in self._places:
            raise CheckpointError(f"{key} is not in {self.path}.")
        file, key_in_file = self._places[key]
        return file.read(key_in_file)

    def component(self, prefix: str | None = None) -> "Component":
        """Return the part of the checkpoint under `prefix`; by default the denoiser of an LBM, else everything."""
        if prefix is None:
            kind = kind_of(self.specs, self.metadata)
            if kind is not None and kind.role != "network":
                raise CheckpointError(
                    f"{self.path} is {kind.name}, not a checkpoint. Give this file as ",
                    Option("calibration" if kind.role == "statistics" else "lora_path"),
                    ", and the model's checkpoint here.",
                )
            prefix = DENOISER_PREFIX if any(key.startswith(DENOISER_PREFIX) for key in self.specs) else ""
        names = [ParamName(key.removeprefix(prefix)) for key in self.specs if key.startswith(prefix)]
        if not names:
            raise CheckpointError(
                f"{self.path} has no tensors under '{prefix}'. Its first keys: {listing(self.specs, limit=3)}."
            )
        return Component(self, prefix, {name: self.specs[prefix + name] for name in names})

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files. Tensors that were read stay valid: each holds a reference to the memory map."""
        self._places = {}


class Component:
    """Tensors of a checkpoint under one prefix, by param name."""

    def __init__(self, checkpoint: Checkpoint, prefix: str, specs: Mapping[ParamName, TensorSpec]) -> None:
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.specs = specs

    @property
    def path(self) -> Path:
        return self.checkpoint.path

    @property
    def shapes(self) -> dict[ParamName, tuple[int, ...]]:
        return {name: spec.shape for name, spec in self.specs.items()}

    def read(self, name: ParamName) -> torch.Tensor:
        """Return a tensor in its storage dtype, as a view of the file."""
        return self.checkpoint.read(self.prefix + name)

    def __iter__(self) -> Iterator[ParamName]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs


CheckpointLike = Path | str | Checkpoint | Mapping[str, torch.Tensor]
"""What stands for a checkpoint: a path, an open one, or tensors by name."""


def open_checkpoint(checkpoint: CheckpointLike, *, label: str = "state dict") -> Checkpoint:
    """Open a `.safetensors` file, its index of shards, a `.ckpt`, or a folder that holds one of them.

    An open checkpoint gives another view of it, which can be closed by itself; a state dict is read from memory.

    Raises:
        CheckpointError: the file does not exist, or cannot be read as a checkpoint.
    """
    if isinstance(checkpoint, Checkpoint):
        return copy(checkpoint)
    if isinstance(checkpoint, Mapping):
        return Checkpoint(Path(label), {Path(label): _StateDict(Path(label), checkpoint)})
    path = Path(checkpoint)
    if not path.exists():
        raise CheckpointError(not_there(path, (".safetensors", *_TORCH_SUFFIXES)))
    try:
        listed = _one_of_folder(path) if path.is_dir() else path
        if listed.name.endswith(_INDEX):
            return Checkpoint(path, _open_shards(listed))
        return Checkpoint(path, {listed: _open_file(listed)})
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        if isinstance(error, LbmLoraError):
            raise
        raise CheckpointError(f"{path} is not a valid path: {error}.") from None


def _open_shards(index: Path) -> dict[Path, _File]:
    """Return the shards of an index, which holds the shard of each key as its `weight_map`."""
    try:
        weight_map = cast(dict[str, str], parse_json(read_text(index))["weight_map"])
        names = list(dict.fromkeys(weight_map.values()))
        outside = [name for name in names if Path(name).name != name]
    except (TextError, KeyError, AttributeError, TypeError):
        names, weight_map, outside = [], {}, []
    if not names:
        raise CheckpointError(f"{index} is not an index of shards: it has no readable `weight_map`.")
    if outside:
        raise CheckpointError(
            f"{index} names shards outside its folder: {listing(outside, limit=3)}. Move them next to it, and correct "
            "their names in the index."
        )
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise CheckpointError(f"{index} lists missing shards: {listing(missing)}. Download them to its folder.")
    files = {index.parent / name: _open_file(index.parent / name) for name in names}
    wrong = [
        f"{key} is not in {name}" for key, name in weight_map.items() if key not in files[index.parent / name].specs
    ]
    if wrong:
        raise CheckpointError(
            f"{index} does not belong to its shards: {listing(wrong, limit=3)}. "
            "Download the index and its shards again."
        )
    return files


def _one_of_folder(folder: Path) -> Path:
    """Return the one checkpoint of a folder: an index, else a `.safetensors`, else a `.ckpt`."""
    for pattern in (f"*{_INDEX}", "*.safetensors", "*.ckpt"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(f"{folder} holds several checkpoints: {listing(p.name for p in found)}. Name one.")
    raise CheckpointError(f"{folder} holds no .safetensors or .ckpt file.")


def _open_file(path: Path) -> _File:
    check_regular(path)
    suffix = path.suffixes[-3] if path.suffix == ".part" else path.suffix  # `.x.ckpt.1a2b.part`: see `files.current`
    if suffix == ".safetensors":
        return SafetensorsFile(path)
    if suffix in _TORCH_SUFFIXES:
        return TorchFile(path)
    raise CheckpointError(
        f"{path}: a checkpoint is a .safetensors, {', '.join(_TORCH_SUFFIXES)} file or an index of shards."
    )


def normalized(key: str) -> str:
    """Remove wrapper names: `model.denoiser._orig_mod.conv_in.weight` -> `denoiser.conv_in.weight`.

    Wrapper segments are removed anywhere; `module.` (DDP) only at the front, where it cannot be a network's own name;
    `model.` (Lightning) only before the components of an LBM.
    """
    segments = [segment for segment in key.split(".") if segment not in _WRAPPERS]
    while len(segments) > 1 and (segments[0] == "module" or (segments[0] == "model" and segments[1] in _AFTER_MODEL)):
        del segments[0]
    return ".".join(segments)


def normalized_keys(keys: Iterable[str], where: object) -> dict[str, str]:
    """Map each normalized key to the key in the file, in the file's order."""
    result: dict[str, str] = {}
    clashes: list[str] = []
    for key in keys:
        short = normalized(key)
        if short in result:
            clashes.append(f"{result[short]} and {key}")
        result[short] = key
    if clashes:
        raise CheckpointError(
            f"{where}: these keys collide once wrapper names such as _orig_mod are removed: {listing(clashes)}. "
            "Remove one of each pair."
        )
    return result
