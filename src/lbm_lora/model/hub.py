"""Fetch the files of a backbone that a base needs, from the Hugging Face hub or its local cache."""

from pathlib import Path

from lbm_lora.bundled import BACKBONE
from lbm_lora.errors import HubError, Option
from lbm_lora.hub import HubName, local_checkpoint
from lbm_lora.hub.fetch import Repository, open_repository

PARTS = ("unet", "vae")
WEIGHTS = "diffusion_pytorch_model"
"""Base name of a network's weight files in diffusers."""

_CONFIGS = [*(f"{part}/config.json" for part in PARTS), "scheduler/scheduler_config.json"]


def fetch_backbone(name: HubName) -> Path:
    """Fetch a hub repository's UNet, VAE and scheduler, and return their local folder; or the named single file.

    Only configurations and safetensors are fetched: full-precision weights, or the `fp16` variant if a network has no
    others.

    Raises:
        HubError: the repository or the file does not exist, or neither the hub nor the cache has the files.
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
        weights = [[file for file in repository.files if _is_weights(file, part, dot)] for part in PARTS]
        if all(any(file.endswith(".safetensors") for file in files) for files in weights):
            return [
                *(file for file in _CONFIGS if file in repository.files),
                *(file for part in weights for file in part),
            ]
    raise HubError(f"{repository.name} on the Hugging Face hub has no unet/ and vae/ weights in safetensors.")


def _is_weights(file: str, part: str, dot: str) -> bool:
    """Whether it is a network's weights, a shard of them, or their index, in the precision that `dot` names."""
    rest = file.removeprefix(f"{part}/{WEIGHTS}")
    is_shard = rest.startswith(f"{dot}-") and rest.endswith(".safetensors")
    return rest != file and (is_shard or rest in (f"{dot}.safetensors", f".safetensors.index{dot}.json"))
