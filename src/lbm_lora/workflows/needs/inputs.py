"""The inputs of a config: which exist, and what they are. Tensors are not read, only headers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from lbm_lora.adapter import load_adapter
from lbm_lora.adapter.adapter_file import lora_in
from lbm_lora.checkpoint import NATIVE, Checkpoint, kind_of, open_checkpoint
from lbm_lora.configs.marks import HUB_CHECKPOINT, HUB_LORA, Named
from lbm_lora.errors import DataError, LbmLoraError, Option, listing, plural
from lbm_lora.hub.names import HubName, hub_name
from lbm_lora.imaging.paths import expand_sources
from lbm_lora.machine import Check, Message
from lbm_lora.machine.check import check
from lbm_lora.missing_path import not_there
from lbm_lora.naming import ParamName, weight_of
from lbm_lora.report.inspection import file_facts
from lbm_lora.report.wording import megabytes

OUTPUTS = frozenset({
    "save_to", "save_path", "output_path", "output", "report", "layer_names", "to", "cache_dir", "save_ckpt_path",
})  # fmt: skip
"""Options that name what is written."""
_SHARDS = frozenset({"data", "source_shards", "train_shards", "validation_shards"})
_PREFIXES = ("http:", "https:", "pipe:", "s3:", "gs:")


@dataclass
class Inputs:
    """What a config reads.

    Attributes:
        checks: one for each input.
        checkpoints, loras: option -> opened files.
        images: option -> the images that it names.
        paths: local files and folders that exist.
    """

    checks: list[Check] = field(default_factory=list[Check])
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict[str, Checkpoint])
    loras: dict[str, list[Checkpoint]] = field(default_factory=dict[str, list[Checkpoint]])
    images: dict[str, Sequence[Path]] = field(default_factory=dict[str, Sequence[Path]])
    paths: list[Path] = field(default_factory=list[Path])

    def add(self, name: str, found: object, **said: Any) -> None:
        """Note what an option names."""
        self.checks.append(check(Option(name), found, **said))


def inputs_of(config: object) -> Inputs:
    """Look at every input that a config names.

    Args:
        config: a config of `lbm_lora.configs`, or the settings of a training.
    """
    inputs = Inputs()
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value: Any = getattr(config, name, None)
        look = None if name in OUTPUTS or value in (None, ()) else _look(name, hint, value)
        if look is None:
            continue
        for one in value if isinstance(value, tuple) and look not in (_images, _shards) else (value,):
            try:
                look(config, inputs, name, one)
            except (LbmLoraError, OSError) as error:
                inputs.add(name, str(_shown(one)), level="problem", remedy=Message.of(error))
    _check_fit(config, inputs)
    return inputs


def _look(name: str, hint: Any, value: Any) -> Callable[[object, Inputs, str, Any], None] | None:
    """How an option is looked at; None for one that names no input."""
    extras = list(_extras(hint))
    if name in _SHARDS:
        return _shards
    if name == "files":
        return _any_file
    if HUB_CHECKPOINT in extras:
        return _checkpoint
    if HUB_LORA in extras:
        return _lora
    if Named("IMAGES") in extras:
        return _images
    if name == "backbone_signature":
        return _backbone
    return _file if name == "mask" or isinstance(value, Path) else None


def _extras(hint: Any) -> Iterator[object]:
    """Every mark in an annotation."""
    yield from getattr(hint, "__metadata__", ())
    for part in get_args(hint):
        yield from _extras(part)


def _any_file(config: object, inputs: Inputs, name: str, path: Path) -> None:
    """A file of any kind, with what it is."""
    opened = _opened(inputs, name, path)
    if opened is not None:
        inputs.add(name, f"{path}: {described(opened)}")


def _checkpoint(config: object, inputs: Inputs, name: str, path: Path) -> None:
    if name == "base_model_path" and hub_name(path) is None and not path.exists() and _makes_base(config):
        inputs.add(name, f"{path} does not exist: the base is made there")
        return
    opened = _opened(inputs, name, path)
    if opened is not None:
        opened.component()  # refuses a LoRA and statistics
        inputs.checkpoints[name] = opened
        inputs.add(name, f"{path}: {described(opened)}")


def _lora(config: object, inputs: Inputs, name: str, path: Path) -> None:
    opened = _opened(inputs, name, lora_in(path) if path.is_dir() else path)
    if opened is None:
        return
    kind = kind_of(opened.specs, opened.metadata)
    if kind is None or kind.role != "lora":
        load_adapter(opened.path)  # says what the file is instead
    inputs.loras.setdefault(name, []).append(opened)
    inputs.add(name, f"{path}: {described(opened)}")


def _images(config: object, inputs: Inputs, name: str, texts: str | tuple[str, ...]) -> None:
    found = expand_sources(texts)
    inputs.images[name] = found
    inputs.paths += found
    nbytes = sum(path.stat().st_size for path in found)
    inputs.add(name, f"{_shown(texts)}: {plural(len(found), 'image')}, {megabytes(nbytes)}; not decoded")


def _shards(config: object, inputs: Inputs, name: str, patterns: tuple[str, ...]) -> None:
    """Shards, or a folder of pairs or shards."""
    if name == "data" and len(patterns) == 1 and Path(patterns[0]).is_dir():
        _file(config, inputs, name, Path(patterns[0]))
        return
    if any("{" in pattern for pattern in patterns):
        try:
            from lbm_lora.shards.tar import expand_shards
        except ImportError:  # the missing extra has its own check
            inputs.add(name, f"{_shown(patterns)}: not expanded", level="note")
            return
        patterns = tuple(expand_shards(patterns))
    remote = [one for one in patterns if one.startswith(_PREFIXES)]
    local = [Path(one) for one in patterns if one not in remote]
    missing = [one for one in local if not one.exists()]
    if missing:
        raise DataError(not_there(missing[0]))
    inputs.paths += local
    nbytes = sum(one.stat().st_size for one in local)
    there = f"{plural(len(local), 'shard')}, {megabytes(nbytes)}" if local else ""
    fetched = f"{plural(len(remote), 'shard')} to fetch" if remote else ""
    inputs.add(name, ", ".join(filter(None, (there, fetched))))


def _backbone(config: object, inputs: Inputs, name: str, signature: str) -> None:
    if Path(signature).exists():
        _file(config, inputs, name, signature)
    else:
        inputs.add(name, f"{signature}: fetched from the hub where it is not in the cache; SDXL's weights take 10 GB")


def _file(config: object, inputs: Inputs, name: str, path: Path | str) -> None:
    path = Path(path)
    if not path.exists():
        raise DataError(not_there(path))
    if path.is_dir():
        files = [one for one in path.rglob("*") if one.is_file()]
        text = f"folder of {plural(len(files), 'file')}, {megabytes(sum(one.stat().st_size for one in files))}"
    elif path.suffix == ".safetensors":
        with open_checkpoint(path) as opened:
            text = described(opened)
    else:
        text = megabytes(path.stat().st_size)
    inputs.paths.append(path)
    inputs.add(name, f"{path}: {text}")


def _opened(inputs: Inputs, name: str, path: Path) -> Checkpoint | None:
    """An open file; None for a name on the hub, which is noted."""
    named = hub_name(path)
    if named is not None:
        _note_hub(inputs, name, named)
        return None
    opened = open_checkpoint(path)
    inputs.paths += [path, *opened.files]
    return opened


def _note_hub(inputs: Inputs, name: str, named: HubName) -> None:
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{named.repo.replace('/', '--')}"
    if folder.is_dir():
        inputs.add(name, f"{named} on the hub: parts of this repository are in the cache; the rest is fetched")
    elif constants.HF_HUB_OFFLINE:
        remedy = "Unset HF_HUB_OFFLINE, or give a local path."
        inputs.add(name, f"{named} on the hub: not in the cache, and the hub is off", level="problem", remedy=remedy)
    else:
        remedy = "Its size and kind are known only after it is fetched. Fetch it first for an estimate."
        inputs.add(name, f"{named} on the hub: it is fetched", level="note", remedy=remedy)


def described(file: Checkpoint) -> str:
    """`an LBM checkpoint, 1,924 tensors, bf16, 5,019.80 MB`."""
    facts = file_facts(file, None)
    return f"{facts.kind}, {plural(facts.tensors, 'tensor')}, {listing(facts.dtypes)}, {megabytes(facts.nbytes)}"


def _check_fit(config: object, inputs: Inputs) -> None:
    """Compare the names of native LoRAs with those of the base."""
    base = inputs.checkpoints.get("base_model_path")
    if base is None:
        return
    component = base.component()
    for name, loras in inputs.loras.items():
        for lora in (one for one in loras if kind_of(one.specs, one.metadata) == NATIVE):
            adapter = load_adapter(lora.path, "file")
            names: list[ParamName] = [*map(weight_of, adapter.modules), *adapter.dense]
            unmatched = [one for one in names if one not in component]
            if unmatched and not getattr(config, "allow_unmatched", False):
                found = f"{plural(len(unmatched), 'key')} of {lora.path} match nothing in {base.path}"
                remedy = f"Give the base that it was made for. First keys: {listing(unmatched, limit=3)}."
                inputs.add(name, found, level="problem", remedy=remedy)


def _makes_base(config: object) -> bool:
    """As `hub.localized` has it: a missing base is made where a backbone is given, or on request."""
    return getattr(config, "backbone_signature", None) is not None or bool(getattr(config, "create_base_model", False))


def _shown(value: object) -> str:
    return listing(map(str, value), limit=3) if isinstance(value, tuple) else str(value)


def parameters_of(checkpoints: Mapping[str, Checkpoint]) -> tuple[int, int]:
    """Return the parameters of the largest checkpoint and of its largest tensor; 0 without a checkpoint."""
    counts = [[spec.numel for spec in one.specs.values()] for one in checkpoints.values() if one.specs]
    return max(((sum(one), max(one)) for one in counts), default=(0, 0))
