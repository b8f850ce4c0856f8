"""Fetch the files of a backbone that a base needs, from the Hugging Face hub or its local cache."""

from pathlib import Path

from huggingface_hub import snapshot_download

from lbm_lora.bundled import BACKBONE
from lbm_lora.errors import HubError, Option

PARTS = ("unet", "vae")
WEIGHTS = "diffusion_pytorch_model"
"""Base name of a network's weight files in diffusers."""

_CONFIGS = [*(f"{part}/config.json" for part in PARTS), "scheduler/scheduler_config.json"]


def fetch_backbone(repo_id: str) -> Path:
    """Fetch a hub repository's UNet, VAE and scheduler, and return their local folder.

    Only configurations and safetensors are fetched: full-precision weights, or the `fp16` variant if a network has no
    others.

    Raises:
        HubError: the repository does not exist, or neither the hub nor the cache has the files.
    """
    reason = "it has no unet/ and vae/ weights in safetensors"
    for dot in ("", ".fp16"):
        try:
            folder = Path(snapshot_download(repo_id, allow_patterns=[*_CONFIGS, *_weight_patterns(dot)]))
        except Exception as error:  # the client raises the errors of several HTTP libraries
            reason = " ".join(str(error).split()) or type(error).__name__
            continue
        if all(any((folder / part).glob(f"{WEIGHTS}*.safetensors")) for part in PARTS):
            return folder
    raise _unreachable(repo_id, reason)


def _weight_patterns(dot: str) -> list[str]:
    names = (f"{dot}.safetensors", f"{dot}-*.safetensors", f".safetensors.index{dot}.json")
    return [f"{part}/{WEIGHTS}{name}" for part in PARTS for name in names]


def _unreachable(repo_id: str, reason: str) -> HubError:
    return HubError(
        f"the backbone {repo_id} cannot be fetched from the Hugging Face hub: {reason.rstrip('.')}. Give ",
        Option("backbone_signature"),
        " a local diffusers folder (unet/, vae/, scheduler/), a single-file SDXL checkpoint "
        f"(.safetensors), or the bundled mini model: {BACKBONE}",
    )
