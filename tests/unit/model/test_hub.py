"""What is fetched of a backbone on the hub, and what is said when it cannot be."""

from pathlib import Path

import pytest

from hub_server import HubServer
from lbm_lora.bundled import BACKBONE
from lbm_lora.errors import HubError
from lbm_lora.hub import HubName
from lbm_lora.model.backbone import fetch_backbone, open_backbone
from lbm_lora.model.config import LBMConfig
from standins import TINY, write_backbone

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
CONFIGS = ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
OTHERS = [
    "model_index.json", "sd_xl_base_1.0.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
    "tokenizer/vocab.json", "unet/model.onnx", "unet/diffusion_flax_model.msgpack", "unet/openvino_model.bin",
    "unet/diffusion_pytorch_model.bin", "vae_1_0/diffusion_pytorch_model.safetensors", "README.md",
]  # fmt: skip
FULL = [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
HALF = [f"{part}/diffusion_pytorch_model.fp16.safetensors" for part in ("unet", "vae")]
SHARDS = [
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
]


@pytest.mark.parametrize(
    ("offered", "fetched"),
    [(FULL + HALF, FULL), (SHARDS + FULL[1:] + HALF, SHARDS + FULL[1:]), (FULL, FULL), (HALF, HALF)],
    ids=["both precisions", "shards", "full only", "fp16 only"],
)
def test_only_one_precision_of_the_weights_and_configurations_are_fetched(
    hub: HubServer, offered: list[str], fetched: list[str]
) -> None:
    hub.put(SDXL, {name: name.encode() for name in CONFIGS + OTHERS + offered})
    folder = fetch_backbone(HubName(SDXL))
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    assert found == {name: name.encode() for name in CONFIGS + fetched}


def test_a_single_file_of_a_repository(hub: HubServer) -> None:
    hub.put(SDXL, {name: name.encode() for name in CONFIGS + OTHERS + FULL}, branch="v2")
    path = fetch_backbone(HubName(SDXL, "sd_xl_base_1.0.safetensors", "v2"))
    assert path.read_bytes() == b"sd_xl_base_1.0.safetensors"


def test_a_repository_without_weights(hub: HubServer) -> None:
    hub.put(SDXL, dict.fromkeys(CONFIGS + OTHERS, b""))
    with pytest.raises(HubError, match=r"hub has no unet/ and vae/ weights in safetensors\. Give backbone_sig"):
        fetch_backbone(HubName(SDXL))


def test_a_repository_that_cannot_be_fetched_names_the_alternatives(hub: HubServer) -> None:
    with pytest.raises(HubError) as caught:
        open_backbone(SDXL, LBMConfig())
    assert str(caught.value) == (
        f"{SDXL} is not a local path, and cannot be fetched from the Hugging Face hub: there is no such repository, or "
        "it is private. Check the name; for a private one, run `hf auth login`, or set HF_TOKEN. Give "
        "backbone_signature a local diffusers folder (unet/, vae/, scheduler/), a single-file SDXL checkpoint "
        f"(.safetensors), or the bundled mini model: {BACKBONE}"
    )


def test_a_hub_id_gives_a_backbone_of_that_name(hub: HubServer, tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "backbone", TINY)
    hub.put(SDXL, {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")})
    with open_backbone(SDXL, LBMConfig()) as backbone:
        assert backbone.name == SDXL
