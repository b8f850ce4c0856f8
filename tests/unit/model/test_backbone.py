"""Every kind of backbone gives the same tensors under the same names."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from hub_server import HubServer
from lbm_lora.bundled import BACKBONE
from lbm_lora.errors import CheckpointError, HubError
from lbm_lora.hub import HubName
from lbm_lora.model import backbone
from lbm_lora.model.backbone import Backbone, fetch_backbone, open_backbone
from lbm_lora.model.config import LBMConfig
from standins import (
    MINI,
    TINY,
    backbone_unet,
    backbone_unet_config,
    backbone_vae,
    lbm_unet_config,
    unet_shapes,
    vae_config,
    vae_shapes,
    write_backbone,
)

CONFIG = LBMConfig(unet=lbm_unet_config(TINY), vae=vae_config())
WEIGHTS = "diffusion_pytorch_model"


def assert_is_the_stand_in(backbone: Backbone) -> None:
    for network, expected in ((backbone.unet, backbone_unet(TINY)), (backbone.vae, backbone_vae())):
        assert network.specs.keys() == expected.keys()
        for name, tensor in expected.items():
            assert network.specs[name].shape == tensor.shape
            assert torch.equal(network.read(name), tensor.to(network.specs[name].dtype)), name


def single_file() -> dict[str, Tensor]:
    """The stand-in as one SDXL file: its own names, and the VAE's projections as 1x1 convolutions."""
    unet, vae = backbone_unet(TINY), backbone_vae()
    plain = [name for name in unet if not name.startswith("add_embedding.")]
    keys = backbone.unet_keys(plain, backbone_unet_config(TINY)) | backbone.ADD_EMBEDDING
    tensors = {keys[name]: tensor for name, tensor in unet.items()}
    for name, key in backbone.vae_keys(vae, vae_config()).items():
        is_projection = ".attentions." in name and vae[name].ndim == 2
        tensors[key] = vae[name][:, :, None, None] if is_projection else vae[name]
    return tensors | {"conditioner.embedders.0.transformer.weight": torch.zeros(3)}


def test_a_diffusers_folder(backbone_folder: Path) -> None:
    with open_backbone(str(backbone_folder), LBMConfig()) as backbone:
        assert_is_the_stand_in(backbone)
        assert backbone.unet_config == backbone_unet_config(TINY)
        assert backbone.vae_config == vae_config()
        assert backbone.scheduler_config is not None
        assert backbone.name == "backbone"
        assert backbone.storage_dtypes == {torch.float32}
        assert [path.parent.name for path in backbone.files] == ["unet", "vae"]


def test_full_precision_is_preferred(tmp_path: Path) -> None:
    write_backbone(tmp_path, TINY, dtype=torch.float16, variant="fp16")
    with open_backbone(str(tmp_path), LBMConfig()) as backbone:
        assert backbone.storage_dtypes == {torch.float16}
    write_backbone(tmp_path, TINY)
    with open_backbone(str(tmp_path), LBMConfig()) as backbone:
        assert backbone.storage_dtypes == {torch.float32}
        assert_is_the_stand_in(backbone)


def test_shards(tmp_path: Path) -> None:
    write_backbone(tmp_path, TINY)
    whole = tmp_path / "unet" / f"{WEIGHTS}.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = list(tensors)
    weight_map = {name: f"{WEIGHTS}-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, whole.parent / shard)
    index = whole.parent / f"{WEIGHTS}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with open_backbone(str(tmp_path), LBMConfig()) as backbone:
        assert_is_the_stand_in(backbone)
        assert len(backbone.files) == 3


def test_pickles_through_the_restricted_reader(tmp_path: Path) -> None:
    write_backbone(tmp_path, TINY)
    for part in ("unet", "vae"):
        whole = tmp_path / part / f"{WEIGHTS}.safetensors"
        torch.save(load_file(whole), whole.with_suffix(".bin"))
        whole.unlink()
    with open_backbone(str(tmp_path), LBMConfig()) as backbone:
        assert_is_the_stand_in(backbone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_single_file(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "sdxl.safetensors"
    save_file({key: tensor.to(dtype).contiguous() for key, tensor in single_file().items()}, path)
    with open_backbone(str(path), CONFIG) as backbone:
        assert_is_the_stand_in(backbone)
        assert backbone.unet_config is None
        assert backbone.name == "sdxl.safetensors"
        assert backbone.files == (path,)
        assert backbone.storage_dtypes == {dtype}


@pytest.mark.parametrize("signature", ["../nowhere", "nowhere", "models/sdxl.safetensors", "/a/b", "a/b@c@d"])
def test_a_path_that_does_not_exist_is_no_hub_id(signature: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_backbone(signature, LBMConfig(), folder=tmp_path)
    assert str(caught.value) == (
        f"The backbone {signature} (from the command line or config.yaml) is not at {tmp_path / signature}, and is not "
        "a hub id of the form owner/name. Give a hub id, a diffusers folder or a single-file SDXL checkpoint with "
        "backbone_signature."
    )


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


def test_a_repository_that_cannot_be_fetched_names_the_alternatives(hub: HubServer) -> None:
    with pytest.raises(HubError) as caught:
        open_backbone(SDXL, LBMConfig())
    assert str(caught.value) == (
        f"{SDXL} is not a local path, and cannot be fetched from the Hugging Face hub: there is no such repository, or "
        "it is private. Check the name; for a private one, run `hf auth login`, or set HF_TOKEN. Give "
        "backbone_signature a local diffusers folder (unet/, vae/, scheduler/), a single-file SDXL checkpoint "
        f"(.safetensors), or the bundled mini model: {BACKBONE}"
    )


UNET = backbone_unet_config(MINI)
VAE = vae_config()
UNET_NAMES = [name for name in unet_shapes(UNET) if not name.startswith("add_embedding.")]


def test_unet_names_are_what_diffusers_converts_back() -> None:
    keys = backbone.unet_keys(UNET_NAMES, UNET) | backbone.ADD_EMBEDDING
    assert len(set(keys.values())) == 1680
    single_file = {key: torch.tensor(index) for index, key in enumerate(keys.values())}
    converted = convert_ldm_unet_checkpoint(single_file, UNET)
    assert {name: int(tensor) for name, tensor in converted.items()} == {name: i for i, name in enumerate(keys)}


def test_vae_names_are_what_diffusers_converts_back() -> None:
    keys = backbone.vae_keys(vae_shapes(VAE), VAE)
    assert len(set(keys.values())) == 248
    single_file = {key: torch.full((1, 1, 1, 1), float(index)) for index, key in enumerate(keys.values())}
    converted = convert_ldm_vae_checkpoint(single_file, VAE)
    assert {name: int(tensor.flatten()[0]) for name, tensor in converted.items()} == {n: i for i, n in enumerate(keys)}
