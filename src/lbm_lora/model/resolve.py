"""Find a checkpoint's configuration, and store it in our own files.

The widths, heads and norm groups of the networks and the VAE's scaling cannot be read from tensor shapes,
and LBM's own config.yaml lacks them. Files that this package writes contain everything.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import xxhash

from lbm_lora.checkpoint import Checkpoint, fingerprint
from lbm_lora.errors import ConfigError, Option
from lbm_lora.files import is_ours
from lbm_lora.model.config import LBMConfig, parse_config, read_config, read_yaml
from lbm_lora.model.constants import LBM_UNET, SDXL_VAE, VAE_PREFIX, has_lbm_unet, has_sdxl_vae
from lbm_lora.naming import DENOISER_PREFIX
from lbm_lora.progress import warn
from lbm_lora.text import TextError, parse_json

METADATA_KEY = "lbm_config"
"""Key of the configuration in our files: in the metadata of a `.safetensors` as JSON, in a `.ckpt` as an entry."""

CKPT_CONTAINERS = {"model_state_dict": "", "state_dict": "model."}
"""Entries of a `.ckpt` that hold its tensors, and the prefix of their names there: the documented commands read the
first, LBM's own loader the second."""

_OURS = frozenset({"backbone_signature", "unet", "vae"})
"""Keys not allowed in a `config` entry: the earlier implementation passes the first itself, LBM lacks the others."""


def resolve_config(checkpoint: Checkpoint, *, config_path: Path | None = None) -> LBMConfig:
    """Return the complete configuration of a checkpoint, with its `unet` and `vae` sections.

    LBM's keys come from the first of these that exists, each section from the first that has it: the file
    itself, the config.yaml (or the only other .yaml) next to it, `config_path`; then, if the shapes are the
    real LBM's, LBM's own constants.
    """
    values = own_values(checkpoint)
    place = f"{'metadata' if METADATA_KEY in checkpoint.metadata else 'entry'} "
    place += METADATA_KEY if METADATA_KEY in {*checkpoint.metadata, *checkpoint.extra} else "config"
    own = None if values is None else parse_config(values, where=f"{checkpoint.path} ({place})")
    if own is not None and own.unet and own.vae:
        if config_path is not None and not _repeats(own, config_path):
            warn(
                f"{checkpoint.path} contains its own configuration: ",
                Option("config_path"),
                f" {config_path} is ignored.",
            )
        return own
    beside = None if checkpoint.in_memory else config_beside(checkpoint.path)
    sources = [
        own,
        read_config(beside) if beside else None,
        read_config(config_path) if config_path else None,
    ]
    found = [source for source in sources if source is not None]
    conv_in = checkpoint.specs.get(f"{DENOISER_PREFIX}conv_in.weight")
    channels = conv_in.shape[1] if conv_in is not None and len(conv_in.shape) == 4 else 4
    config = found[0] if found else LBMConfig(unet_input_channels=channels)
    unet = next((source.unet for source in found if source.unet), None)
    vae = next((source.vae for source in found if source.vae), None)
    if unet is None and has_lbm_unet(checkpoint.specs):
        unet = lbm_unet(config)
    if vae is None and has_sdxl_vae(checkpoint.specs):
        vae = dict(SDXL_VAE)
    missing = [name for name, section in (("unet", unet), ("vae", vae)) if section is None]
    if missing:
        raise _missing(checkpoint, missing, beside, config_path)
    return parse_config(config.model_dump() | {"unet": unet, "vae": vae}, where=str(checkpoint.path))


def around(checkpoint: Checkpoint, config: LBMConfig) -> str:
    """Return the digest of what a denoiser works with: the VAE, and the model's configuration."""
    vae = fingerprint(checkpoint.component(VAE_PREFIX)).digest
    return xxhash.xxh3_128_hexdigest(f"{vae} {config.model_dump_json()}".encode())


def config_beside(path: Path) -> Path | None:
    """Return the config.yaml in a checkpoint's folder, or the only other .yaml there with keys of LBM.

    A LoRA's sidecar `..._config.yaml` does not count, nor does the config.yaml of a training run in the folder.
    """
    folder = path if path.is_dir() else path.parent
    named = folder / "config.yaml"
    if named.is_file() and not is_ours(named):
        return named
    yamls = (found for found in sorted(folder.glob("*.yaml")) if found != named)
    others = [found for found in yamls if not found.name.endswith("_config.yaml")]
    return others[0] if len(others) == 1 and _has_lbm_keys(others[0]) else None


def lbm_unet(config: LBMConfig) -> dict[str, Any]:
    """Return the configuration of the real LBM's denoiser with the channels of a configuration."""
    return dict(LBM_UNET) | {
        "in_channels": config.unet_input_channels,
        "out_channels": config.vae_num_channels,
    }


def ckpt_entries(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a `.ckpt` for a configuration of plain types: ours, and those that other loaders need."""
    signature = {key: values[key] for key in ("backbone_signature",) if key in values}
    config = {key: value for key, value in values.items() if key not in _OURS}
    return {"config": config, METADATA_KEY: dict(values), **signature}


def config_to_metadata(config: LBMConfig) -> dict[str, str]:
    """Return the metadata of a `.safetensors` for a configuration."""
    return {METADATA_KEY: json.dumps(config.model_dump(mode="json"))}


def own_values(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the unchecked configuration keys inside a checkpoint; None if it contains none."""
    text = checkpoint.metadata.get(METADATA_KEY)
    if text is not None:
        where = f"{checkpoint.path} (metadata {METADATA_KEY})"
        try:
            values = parse_json(text)
        except TextError as error:
            raise ConfigError(f"{where}: the configuration {error}. The file was edited or is damaged.") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: the configuration is a {type(values).__name__}, not a mapping of keys.")
        return cast(dict[str, Any], values)
    whole, held = checkpoint.extra.get(METADATA_KEY), checkpoint.extra.get("config")
    if isinstance(whole, dict):
        return cast(dict[str, Any], whole)
    if not isinstance(held, dict):
        return None
    # The earlier implementation's `config` lacks keys of its `source_config`, the YAML file as read.
    source = checkpoint.extra.get("source_config")
    named = {k: v for k, v in source.items() if k in LBMConfig.model_fields} if isinstance(source, dict) else {}
    return cast(dict[str, Any], named | held)


def _has_lbm_keys(path: Path) -> bool:
    try:
        return not LBMConfig.model_fields.keys().isdisjoint(read_yaml(path))
    except ConfigError:
        return False


def _repeats(own: LBMConfig, config_path: Path) -> bool:
    """Return whether a config.yaml only repeats the file's own configuration, as for a base just made from it."""
    try:
        given = read_config(config_path)
    except ConfigError:
        return False
    said = given.model_fields_set - {"backbone_signature"}
    return given.model_dump(include=said) == own.model_dump(include=said)


def _missing(checkpoint: Checkpoint, sections: list[str], beside: Path | None, config_path: Path | None) -> ConfigError:
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    names = " and ".join(f"`{name}`" for name in sections)
    # SD 1.5 has four levels of width 320 to 1280, with attention on all but the last
    deep = checkpoint.specs.get(f"{DENOISER_PREFIX}down_blocks.3.resnets.0.conv1.weight")
    is_sd15 = deep is not None and deep.shape == (1280, 1280, 3, 3)
    shapes = "those of Stable Diffusion 1.5" if is_sd15 else "not those of the real LBM"
    return ConfigError(
        f"{checkpoint.path}: the configuration of its networks is missing, and its shapes are {shapes}. No section "
        f"{names} found in the file itself, {beside or folder / 'config.yaml'}, ",
        *([str(config_path)] if config_path else [Option("config_path"), " (not given)"]),
        ". Add it (a diffusers config) to a config.yaml next to the file, or give such a file with ",
        Option("config_path"),
        ".",
    )
