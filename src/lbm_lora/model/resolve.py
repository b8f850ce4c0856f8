"""Where a checkpoint's configuration comes from, and how our own files carry it.

The widths, heads and norm groups of the networks and the VAE's scaling cannot be read from tensor shapes,
and LBM's own config.yaml does not hold them. Files that this package writes carry everything themselves.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lbm_lora.checkpoint import Checkpoint, TensorSpec
from lbm_lora.errors import ConfigError
from lbm_lora.model.config import LBMConfig, parse_config, read_config, read_yaml
from lbm_lora.model.constants import LBM_UNET, SDXL_VAE, has_lbm_unet, has_sdxl_vae
from lbm_lora.naming import DENOISER_PREFIX
from lbm_lora.progress import warn

METADATA_KEY = "lbm_config"
"""Where the metadata of a `.safetensors` file of ours holds its configuration, as JSON."""


def resolve_config(checkpoint: Checkpoint, *, config_path: Path | None = None) -> LBMConfig:
    """The whole configuration of a checkpoint, with its `unet` and `vae` sections.

    LBM's keys come from the first of these that exists, each section from the first that has it: the file
    itself, the config.yaml (or the only other .yaml) beside it, `config_path`; then, where the shapes are
    the real LBM's, LBM's own constants.

    Raises:
        ConfigError: a source holds an unknown key or a value that cannot be, or a section is nowhere to be found.
    """
    own = _own_config(checkpoint)
    if own is not None and own.unet and own.vae:
        if config_path is not None:
            warn(f"{checkpoint.path} carries its own configuration: --config_path {config_path} is not used.")
        return own
    beside = config_beside(checkpoint.path)
    sources = [
        own,
        read_config(beside) if beside else None,
        read_config(config_path) if config_path else None,
    ]
    found = [source for source in sources if source is not None]
    config = found[0] if found else LBMConfig(unet_input_channels=_conv_in_channels(checkpoint, default=4))
    unet = next((source.unet for source in found if source.unet), None)
    vae = next((source.vae for source in found if source.vae), None)
    if unet is None and has_lbm_unet(checkpoint.specs):
        unet = lbm_unet(config)
    if vae is None and has_sdxl_vae(checkpoint.specs):
        vae = dict(SDXL_VAE)
    missing = [name for name, section in (("unet", unet), ("vae", vae)) if section is None]
    if missing:
        raise ConfigError(_missing(checkpoint, missing, beside, config_path))
    return parse_config(config.model_dump() | {"unet": unet, "vae": vae}, where=str(checkpoint.path))


def config_beside(path: Path) -> Path | None:
    """The config.yaml in a checkpoint's folder, or the only other .yaml there that holds keys of LBM.

    A LoRA's sidecar `..._config.yaml` is none.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / "config.yaml").is_file():
        return folder / "config.yaml"
    others = [found for found in sorted(folder.glob("*.yaml")) if not found.name.endswith("_config.yaml")]
    return others[0] if len(others) == 1 and _has_lbm_keys(others[0]) else None


def lbm_unet(config: LBMConfig) -> dict[str, Any]:
    """The real LBM's denoiser with the channels that a configuration asks for."""
    return dict(LBM_UNET) | {
        "in_channels": config.unet_input_channels,
        "out_channels": config.vae_num_channels,
    }


def config_to_ckpt(config: LBMConfig) -> dict[str, Any]:
    """What the `config` entry of a `.ckpt` holds: LBM's keys and both sections, of plain types."""
    return json.loads(config.model_dump_json())


def config_to_metadata(config: LBMConfig) -> dict[str, str]:
    """What the metadata of a `.safetensors` holds."""
    return {METADATA_KEY: json.dumps(config_to_ckpt(config))}


def _has_lbm_keys(path: Path) -> bool:
    try:
        return not LBMConfig.model_fields.keys().isdisjoint(read_yaml(path))
    except ConfigError:
        return False


def _own_config(checkpoint: Checkpoint) -> LBMConfig | None:
    text = checkpoint.metadata.get(METADATA_KEY)
    if text is not None:
        where = f"{checkpoint.path} (metadata {METADATA_KEY})"
        try:
            return parse_config(json.loads(text), where=where)
        except json.JSONDecodeError:
            raise ConfigError(f"{where}: the configuration is not JSON. The file was edited or is damaged.") from None
    held = checkpoint.extra.get("config")
    if not isinstance(held, dict):
        return None
    # The earlier implementation's `config` lacks keys that its `source_config`, the YAML file as read, has.
    source = checkpoint.extra.get("source_config")
    named = {k: v for k, v in source.items() if k in LBMConfig.model_fields} if isinstance(source, dict) else {}
    return parse_config(cast(dict[str, Any], named | held), where=f"{checkpoint.path} (entry config)")


def _conv_in_channels(checkpoint: Checkpoint, *, default: int) -> int:
    spec = checkpoint.specs.get(f"{DENOISER_PREFIX}conv_in.weight")
    return spec.shape[1] if spec is not None and len(spec.shape) == 4 else default


def _missing(checkpoint: Checkpoint, sections: list[str], beside: Path | None, config_path: Path | None) -> str:
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    looked = [
        "the file itself",
        str(beside or folder / "config.yaml"),
        str(config_path or "--config_path (not given)"),
    ]
    names = " and ".join(f"`{name}`" for name in sections)
    shapes = "those of Stable Diffusion 1.5" if _is_sd15(checkpoint.specs) else "not those of the real LBM"
    return (
        f"{checkpoint.path}: the configuration of its networks is missing, and its shapes are {shapes}. No section "
        f"{names} in {', '.join(looked)}. Add it (a diffusers config) to a config.yaml beside the file, or give such "
        "a file with --config_path."
    )


def _is_sd15(specs: Mapping[str, TensorSpec]) -> bool:
    """Four levels of width 320 to 1280, with attention on all but the last."""
    deep = specs.get(f"{DENOISER_PREFIX}down_blocks.3.resnets.0.conv1.weight")
    return deep is not None and deep.shape == (1280, 1280, 3, 3)
