"""Read the backbone that an LBM starts from, as named tensors, one at a time.

A backbone is a name on the hub, a diffusers folder (`unet/`, `vae/`, `scheduler/`), or a single-file SDXL
checkpoint. All of them are presented the same way: with diffusers' tensor names, and the networks'
configurations as far as they are known. Only the UNet, the VAE and the scheduler are read.

The names of a single file (those of Stability AI's generative-models) are built forward, from the names of a network:
nothing is guessed from a foreign name. The UNet's are in `adapter/formats/names.py`, since the LoRAs of other programs
need them too. The VAE numbers its up blocks from the output side, and stores the projections of its attention as 1x1
convolutions.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch

from lbm_lora.adapter.formats.names import unet_modules
from lbm_lora.bundled import BACKBONE
from lbm_lora.checkpoint import Checkpoint, TensorSpec, open_checkpoint
from lbm_lora.errors import CheckpointError, ConfigError, HubError, Option, listing
from lbm_lora.hub import HubName, hub_name, local_checkpoint
from lbm_lora.hub.fetch import Repository, open_repository
from lbm_lora.missing_path import home_path
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.constants import LBM_UNET, SDXL_VAE
from lbm_lora.model.names import empty_unet, empty_vae, shapes_of
from lbm_lora.naming import ParamName, leaf_of, module_of
from lbm_lora.plain_text import TextError, parse_json, read_text

PARTS = ("unet", "vae")
WEIGHTS = "diffusion_pytorch_model"
"""Base name of a network's weight files in diffusers."""
_CONFIGS = [*(f"{part}/config.json" for part in PARTS), "scheduler/scheduler_config.json"]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
ADD_EMBEDDING = {
    f"add_embedding.linear_{layer}.{leaf}": f"{UNET_PREFIX}label_emb.0.{index}.{leaf}"
    for layer, index in ((1, 0), (2, 2))
    for leaf in ("weight", "bias")
}
"""Names of SDXL's text and time embedding, which a base drops, in diffusers and in a single file."""
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE_PLACE = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_MID = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")

# diffusers' own names of a VAE's attention before its release 0.17.
_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_OLD_VAE = re.compile(r"(?<=attentions\.\d)(\.query\.|\.key\.|\.value\.|\.proj_attn\.)")


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network of a backbone.

    Attributes:
        keys: diffusers name -> key in the checkpoint.
        specs: diffusers name -> dtype and shape in diffusers.
    """

    checkpoint: Checkpoint
    keys: Mapping[str, str]
    specs: Mapping[str, TensorSpec]

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor in its storage dtype; a 1x1 convolution that diffusers stores as a matrix becomes a matrix."""
        return self.checkpoint.read(self.keys[name]).reshape(self.specs[name].shape)


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """An open backbone, as a context manager; tensors that were read stay valid after it.

    Attributes:
        name: the hub id, or the last part of the folder's or file's path.
        unet_config, vae_config, scheduler_config: diffusers configurations; None if a single file has none.
    """

    signature: str
    name: str
    unet: Network
    vae: Network
    unet_config: Mapping[str, Any] | None
    vae_config: Mapping[str, Any] | None
    scheduler_config: Mapping[str, Any] | None

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that are read."""
        return tuple(dict.fromkeys((*self.unet.checkpoint.files, *self.vae.checkpoint.files)))

    @property
    def storage_dtypes(self) -> frozenset[torch.dtype]:
        """Return the stored floating-point dtypes of the networks' tensors."""
        specs = (*self.unet.specs.values(), *self.vae.specs.values())
        return frozenset(spec.dtype for spec in specs if spec.is_floating)

    def __enter__(self) -> "Backbone":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for network in (self.unet, self.vae):
                stack.enter_context(network.checkpoint)


def choose_signature(flag: str | None, config: LBMConfig, config_path: Path | None) -> tuple[str, Path]:
    """Return the backbone and the folder that relative paths start from: from the flag, else the configuration."""
    if flag is not None:
        return flag, Path()
    return config.backbone_signature, config_path.parent if config_path else Path()


def find_backbone(signature: str, folder: Path = Path()) -> Path | HubName:
    """Return where a backbone is: its local path, or its name on the hub, where nothing is looked up."""
    local = folder / home_path(signature)
    if local.exists():
        return local
    on_hub = hub_name(signature)
    if on_hub is None:
        raise CheckpointError(
            f"The backbone {signature} (from the command line or config.yaml) is not at {local}, and is not a hub "
            "id of the form owner/name. Give a hub id, a diffusers folder or a single-file SDXL checkpoint with ",
            Option("backbone_signature"),
            ".",
        )
    return on_hub


def open_backbone(signature: str, config: LBMConfig, *, folder: Path = Path()) -> Backbone:
    """Open a backbone.

    Args:
        signature: a hub id (or a file in that repository, or either at a revision), a folder, or a file.
        config: LBM's configuration; its sections `unet` and `vae`, if any, describe the networks of a
            single file of another size than SDXL.
        folder: folder that a relative path starts from.
    """
    found = find_backbone(signature, folder)
    if isinstance(found, Path):
        name, local = found.resolve().name, found
    else:
        name, local = signature, fetch_backbone(found)
    if (local / "unet").is_dir():
        return _open_folder(signature, name, local)
    return _open_single_file(signature, name, local, config)


def _open_folder(signature: str, name: str, folder: Path) -> Backbone:
    unet = open_checkpoint(_weights_of(folder / "unet"))
    vae = open_checkpoint(_weights_of(folder / "vae"))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    return Backbone(
        signature=signature,
        name=name,
        unet=Network(checkpoint=unet, keys={name: name for name in unet.specs}, specs=unet.specs),
        vae=_network(vae, {_OLD_VAE.sub(lambda old: _OLD_VAE_NAMES[old[0]], key): key for key in vae.specs}),
        unet_config=_read_json(folder / "unet" / "config.json"),
        vae_config=_read_json(folder / "vae" / "config.json"),
        scheduler_config=_read_json(scheduler) if scheduler.exists() else None,
    )


def _weights_of(folder: Path) -> Path:
    """Return the weight file of a network's folder: full precision before fp16, safetensors before pickles."""
    for dot in ("", ".fp16"):
        for name in (f"{dot}.safetensors", f".safetensors.index{dot}.json", f"{dot}.bin"):
            if (folder / (WEIGHTS + name)).is_file():
                return folder / (WEIGHTS + name)
    found = listing(path.name for path in sorted(folder.glob("*.*"))) if folder.is_dir() else "no such folder"
    raise CheckpointError(f"{folder} holds no {WEIGHTS}.safetensors, no shards and no .fp16 variant of it: {found}.")


def _open_single_file(signature: str, name: str, path: Path, config: LBMConfig) -> Backbone:
    checkpoint = open_checkpoint(path)
    missing = [p for p in (UNET_PREFIX, VAE_PREFIX) if not any(key.startswith(p) for key in checkpoint.specs)]
    if missing:
        raise CheckpointError(
            f"{path} is not a backbone: it has no tensors under {' and '.join(missing)}, unlike a single-file SDXL "
            f"checkpoint, and no folders unet/ and vae/. Its first keys: {listing(checkpoint.specs, limit=3)}."
        )
    unet_config, vae_config = config.unet or dict(LBM_UNET), config.vae or dict(SDXL_VAE)
    unet_names = unet_keys(shapes_of(empty_unet(unet_config)), unet_config) | ADD_EMBEDDING
    vae_names = vae_keys(shapes_of(empty_vae(vae_config)), vae_config)
    return Backbone(
        signature=signature,
        name=name,
        unet=_network(checkpoint, unet_names | _unknown(checkpoint, UNET_PREFIX, unet_names)),
        vae=_network(checkpoint, vae_names | _unknown(checkpoint, VAE_PREFIX, vae_names)),
        unet_config=None,
        vae_config=None,
        scheduler_config=None,
    )


def _unknown(checkpoint: Checkpoint, prefix: str, keys: Mapping[str, str]) -> dict[str, str]:
    """Return keys of the file that the table lacks, under their own names: the caller must account for them."""
    known = set(keys.values())
    return {key: key for key in checkpoint.specs if key.startswith(prefix) and key not in known}


def _network(checkpoint: Checkpoint, keys: Mapping[str, str]) -> Network:
    present = {name: key for name, key in keys.items() if key in checkpoint.specs}
    specs = {name: checkpoint.specs[key] for name, key in present.items()}
    for name, spec in specs.items():  # diffusers stores a VAE's attention projections as matrices, not 1x1 convolutions
        if name.startswith(("encoder.mid_block.attentions.", "decoder.mid_block.attentions.")) and len(spec.shape) == 4:
            specs[name] = TensorSpec(dtype=spec.dtype, shape=spec.shape[:2])
    return Network(checkpoint=checkpoint, keys=present, specs=specs)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = parse_json(read_text(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. A diffusers folder must contain it.") from None
    except TextError as error:
        raise ConfigError(f"{path} {error}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not an object.")
    return cast(dict[str, Any], values)


def fetch_backbone(name: HubName) -> Path:
    """Fetch a hub repository's UNet, VAE and scheduler, and return their local folder; or the named single file.

    Only configurations and safetensors are fetched: full-precision weights, or the `fp16` variant if a network has no
    others.
    """
    try:
        if name.file:
            return local_checkpoint(f"hf://{name}")
        repository = open_repository(name)
        return repository.fetch(_files_of(repository))
    except HubError as error:
        raise HubError(
            *error.args,
            " Give ",
            Option("backbone_signature"),
            " a local diffusers folder (unet/, vae/, scheduler/), a single-file SDXL checkpoint "
            f"(.safetensors), or the bundled mini model: {BACKBONE}",
        ) from None


def _files_of(repository: Repository) -> list[str]:
    for dot in ("", ".fp16"):
        escaped = re.escape(dot)
        weights = [
            [
                file
                for file in repository.files
                if re.fullmatch(
                    rf"{part}/{WEIGHTS}({escaped}(-.*)?\.safetensors|\.safetensors\.index{escaped}\.json)", file
                )
            ]
            for part in PARTS
        ]
        if all(any(file.endswith(".safetensors") for file in files) for files in weights):
            return [
                *(file for file in _CONFIGS if file in repository.files),
                *(file for part in weights for file in part),
            ]
    raise HubError(f"{repository.name} on the Hugging Face hub has no unet/ and vae/ weights in safetensors.")


def unet_keys(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return diffusers name -> single-file key for every tensor of a UNet."""
    depths: int | list[Any] = config.get("transformer_layers_per_block", 1)
    modules = unet_modules(
        ["CrossAttn" in kind for kind in config["down_block_types"]],
        ["CrossAttn" in kind for kind in config["up_block_types"]],
        config.get("layers_per_block", 2),
        max(_numbers(depths)),
    )
    params = [ParamName(name) for name in names]
    return {name: f"{UNET_PREFIX}{modules[module_of(name)]}.{leaf_of(name)}" for name in params}


def vae_keys(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return diffusers name -> single-file key for every tensor of a VAE."""
    return {name: VAE_PREFIX + _vae_key(name, len(config["block_out_channels"])) for name in names}


def _numbers(depths: int | list[Any]) -> list[int]:
    """Return the numbers in a setting that may have one per model, per block, or per layer of each block."""
    return [depths] if isinstance(depths, int) else [number for depth in depths for number in _numbers(depth)]


def _vae_key(name: str, levels: int) -> str:
    place, mid = _VAE_PLACE.fullmatch(name), _VAE_MID.fullmatch(name)
    if place:
        half, block, kind, layer, rest = place[1], int(place[2]), place[3], int(place[4]), place[5]
        side = "down" if half == "encoder" else "up"
        level = block if half == "encoder" else levels - 1 - block
        if kind != "resnets":
            return f"{half}.{side}.{level}.{side}sample.{rest}"
        return f"{half}.{side}.{level}.block.{layer}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
    if mid:
        half, kind, layer, rest = mid[1], mid[2], int(mid[3]), mid[4]
        module, _, leaf = rest.rpartition(".")
        attention = f"attn_{layer + 1}.{_VAE_ATTENTION.get(module, module)}.{leaf}"
        return f"{half}.mid.{attention if kind == 'attentions' else f'block_{layer + 1}.{rest}'}"
    return name.replace("conv_norm_out", "norm_out")
