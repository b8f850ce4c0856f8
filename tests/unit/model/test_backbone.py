"""Every kind of backbone gives the same tensors under the same names."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbm_lora.errors import CheckpointError, ConfigError
from lbm_lora.model import backbone
from lbm_lora.model.backbone import Backbone, choose_signature, open_backbone
from lbm_lora.model.config import LBMConfig
from standins import (
    TINY,
    backbone_unet,
    backbone_unet_config,
    backbone_vae,
    lbm_unet_config,
    vae_config,
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


def test_a_relative_path_counts_from_the_given_folder(backbone_folder: Path) -> None:
    with open_backbone("../backbone", LBMConfig(), folder=backbone_folder.parent / "backbone") as backbone:
        assert backbone.name == "backbone"


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


def test_old_names_of_the_vaes_attention(tmp_path: Path) -> None:
    write_backbone(tmp_path, TINY)
    whole = tmp_path / "vae" / f"{WEIGHTS}.safetensors"
    old = {}
    for name, tensor in load_file(whole).items():
        for new, was in (
            (".to_q.", ".query."),
            (".to_k.", ".key."),
            (".to_v.", ".value."),
            (".to_out.0.", ".proj_attn."),
        ):
            name = name.replace(new, was)
        old[name] = tensor
    save_file(old, whole)
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


def test_what_the_table_does_not_know_is_not_lost(tmp_path: Path) -> None:
    tensors = single_file() | {"model.diffusion_model.extra.weight": torch.zeros(1)}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "sdxl.safetensors")
    with open_backbone(str(tmp_path), CONFIG) as backbone:
        assert "model.diffusion_model.extra.weight" in backbone.unet.specs


def test_a_file_that_is_no_backbone(tuned_file: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_backbone(str(tuned_file), CONFIG)
    assert str(caught.value).startswith(
        f"{tuned_file} is not a backbone: it has no tensors under model.diffusion_model. and first_stage_model., "
        "unlike a single-file SDXL checkpoint, and no folders unet/ and vae/. Its first keys: "
    )


@pytest.mark.parametrize("signature", ["../nowhere", "nowhere", "models/sdxl.safetensors", "/a/b", "a/b@c@d"])
def test_a_path_that_does_not_exist_is_no_hub_id(signature: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_backbone(signature, LBMConfig(), folder=tmp_path)
    assert str(caught.value) == (
        f"The backbone {signature} (from the command line or config.yaml) is not at {tmp_path / signature}, and is not "
        "a hub id of the form owner/name. Give a hub id, a diffusers folder or a single-file SDXL checkpoint with "
        "backbone_signature."
    )


def test_a_folder_without_weights(backbone_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(backbone_folder, tmp_path / "copy")
    (tmp_path / "copy" / "vae" / f"{WEIGHTS}.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        open_backbone(str(tmp_path / "copy"), LBMConfig())
    assert str(caught.value) == (
        f"{tmp_path}/copy/vae holds no {WEIGHTS}.safetensors, no shards and no .fp16 variant of it: config.json."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read: No such file"), ("{", "is not JSON"), ("[]", "holds a list, not an object")],
)
def test_a_configuration_that_cannot_be_read(
    backbone_folder: Path, tmp_path: Path, text: str | None, message: str
) -> None:
    shutil.copytree(backbone_folder, tmp_path / "copy")
    path = tmp_path / "copy" / "unet" / "config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ConfigError, match=f"unet/config.json {message}"):
        open_backbone(str(tmp_path / "copy"), LBMConfig())


def test_the_flag_wins_over_the_configuration() -> None:
    config, yaml_file = LBMConfig(backbone_signature="../backbone"), Path("models/config.yaml")
    assert choose_signature("a/b", config, yaml_file) == ("a/b", Path())
    assert choose_signature(None, config, yaml_file) == ("../backbone", Path("models"))
    assert choose_signature(None, LBMConfig(), None) == ("stabilityai/stable-diffusion-xl-base-1.0", Path())
