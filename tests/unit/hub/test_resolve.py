"""Repositories in the place of paths: which file is taken, and that it is the same, byte for byte."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import torch
from safetensors.torch import save

from hub_server import HubServer
from lbm_lora.configs.fuse import FuseConfig
from lbm_lora.configs.infer import InferConfig
from lbm_lora.configs.marks import ADVANCED, Checkpoint, File, Lora
from lbm_lora.errors import HubError
from lbm_lora.hub.resolve import local_checkpoint, local_lora, localized
from lbm_lora.training.settings.train_config import TrainConfig


def tensors(seed: int = 0, **header: str) -> bytes:
    return save({"a": torch.full((4, 4), float(seed))}, header or None)


OURS = tensors(1, lbm_lora_format="1")
TWIN = tensors(2, format="pt")


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        ({"only.safetensors": TWIN, "README.md": b""}, "only.safetensors"),
        ({"pytorch_lora_weights.safetensors": TWIN, "ours.safetensors": OURS}, "ours.safetensors"),
        ({"pytorch_lora_weights.safetensors": TWIN, "other.safetensors": TWIN}, "pytorch_lora_weights.safetensors"),
        ({"pytorch_lora_weights.safetensors": TWIN, "adapter_model.safetensors": TWIN}, "adapter_model.safetensors"),
    ],
)
def test_a_repository_gives_our_lora_else_that_of_diffusers_else_the_only_one(
    hub: HubServer, files: dict[str, bytes], taken: str
) -> None:
    hub.put("user/repo", files)
    path = local_lora("user/repo")
    assert (path.name, path.read_bytes()) == (taken, files[taken])
    assert sorted(one.name for one in path.parent.iterdir()) == [taken]  # nothing else is fetched


def test_a_folder_of_a_repository_and_the_configuration_of_peft(hub: HubServer) -> None:
    files = {"peft/adapter_model.safetensors": TWIN, "peft/adapter_config.json": b"{}", "a.safetensors": OURS}
    hub.put("user/repo", files)
    path = local_lora("user/repo/peft")
    assert path.name == "adapter_model.safetensors"
    assert path.with_name("adapter_config.json").read_bytes() == b"{}"
    assert local_lora("user/repo").name == "a.safetensors"


def test_several_of_ours_are_listed(hub: HubServer) -> None:
    hub.put("user/repo", {"r8.safetensors": OURS, "r32.safetensors": OURS, "pytorch_lora_weights.safetensors": TWIN})
    with pytest.raises(HubError) as caught:
        local_lora("user/repo@main")
    assert str(caught.value) == (
        "user/repo on the Hugging Face hub has several LoRAs: r32.safetensors, r8.safetensors. "
        "Name one: user/repo/r32.safetensors@main."
    )


def test_a_repository_without_a_lora(hub: HubServer) -> None:
    hub.put("user/repo", {"README.md": b"", "model.bin": b"x"})
    with pytest.raises(HubError) as caught:
        local_lora("user/repo")
    assert str(caught.value) == (
        "user/repo on the Hugging Face hub has no .safetensors file. It holds README.md, model.bin."
    )


def test_a_file_at_a_revision(hub: HubServer) -> None:
    first = hub.put("user/repo", {"a/r8.safetensors": tensors(1), "b.safetensors": TWIN})
    hub.put("user/repo", {"a/r8.safetensors": tensors(2)})
    hub.put("user/repo", {"a/r8.safetensors": tensors(3)}, branch="dev")
    for name, seed in {"": 2, f"@{first}": 1, f"@{first[:40]}": 1, "@dev": 3}.items():
        assert local_lora(f"user/repo/a/r8.safetensors{name}").read_bytes() == tensors(seed)
    assert local_lora("hf://user/repo@dev/a/r8.safetensors").read_bytes() == tensors(3)


def test_a_file_that_is_not_there_names_the_nearest(hub: HubServer) -> None:
    hub.put("user/repo", {"relight.safetensors": OURS})
    with pytest.raises(HubError) as caught:
        local_lora("user/repo/relihgt.safetensors")
    assert str(caught.value) == (
        "user/repo on the Hugging Face hub has no file relihgt.safetensors. Did you mean user/repo/relight.safetensors?"
    )
    with pytest.raises(HubError, match=r"has no file unet\. It holds relight\.safetensors\.$"):
        local_checkpoint("user/repo/unet")


def test_a_checkpoint_comes_with_its_configuration(hub: HubServer) -> None:
    hub.put("user/lbm", {"model.safetensors": OURS, "config.yaml": b"a: 1\n", "assets/big.png": b"x", "README.md": b""})
    path = local_checkpoint("user/lbm")
    assert path.name == "model.safetensors"
    assert sorted(one.name for one in path.parent.iterdir()) == ["config.yaml", "model.safetensors"]
    assert local_checkpoint("user/lbm/model.safetensors") == path


def test_shards_are_fetched_with_their_index(hub: HubServer) -> None:
    shards = [f"unet/model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    hub.put("user/lbm", {"unet/model.safetensors.index.json": b"{}", **dict.fromkeys(shards, OURS), "a.ckpt": b""})
    path = local_checkpoint("user/lbm/unet")
    assert path.name == "model.safetensors.index.json"
    assert sorted(one.name for one in path.parent.iterdir())[:2] == [Path(shard).name for shard in shards]
    assert local_checkpoint("user/lbm").name == "a.ckpt"


def test_several_checkpoints_are_listed(hub: HubServer) -> None:
    hub.put("user/lbm", {"a.safetensors": OURS, "b.safetensors": OURS})
    with pytest.raises(
        HubError, match=r"has several checkpoints: a\.safetensors, b\.safetensors\. Name one: user/lbm/a\."
    ):
        local_checkpoint("user/lbm")


def test_local_paths_are_not_looked_up(hub: HubServer, tmp_path: Path) -> None:
    for path in (tmp_path / "a" / "b", Path("lora.safetensors"), "missing/lora.safetensors"):
        assert local_lora(path) == local_checkpoint(path) == Path(path)
    assert hub.requests == []


def test_the_paths_of_a_config_become_local(hub: HubServer, tmp_path: Path) -> None:
    hub.put("user/lbm", {"model.safetensors": TWIN})
    hub.put("user/repo", {"lora.safetensors": OURS})
    config = FuseConfig(
        base_model_path=Path("user/lbm"),
        lora_path=(Path("user/repo"), tmp_path / "b.safetensors"),
        save_to=Path("user/made"),
    )
    found = localized(config)
    assert found.base_model_path.read_bytes() == TWIN
    assert [path.name for path in found.lora_path] == ["lora.safetensors", "b.safetensors"]
    assert found.save_to == Path("user/made")
    count = len(hub.requests)
    assert localized(found) is found
    assert len(hub.requests) == count


def test_the_keys_of_a_training_file_become_local(hub: HubServer) -> None:
    hub.put("user/lbm", {"model.safetensors": TWIN})
    hub.put("user/repo", {"lora.safetensors": OURS})
    settings = TrainConfig.model_validate(
        {"base_model_path": "user/lbm", "lora_weights_path": "user/repo", "train_folder": "user/pairs"}
    )
    found = localized(settings)
    assert found.base_model_path is not None
    assert found.lora_weights_path is not None
    assert (found.base_model_path.name, found.lora_weights_path.name) == ("model.safetensors", "lora.safetensors")
    assert str(found.train_folder) == str(Path("user/pairs"))


def test_a_base_that_would_be_made_is_not_looked_up(hub: HubServer) -> None:
    config = InferConfig(
        base_model_path=Path("user/lbm"), backbone_signature="b", source_image="a.png", output_path="b.png"
    )
    assert localized(config) is config
    assert hub.requests == []


@dataclass(frozen=True, kw_only=True)
class Marked:
    one: Annotated[Lora | None, ADVANCED] = None
    several: tuple[Checkpoint, ...] = ()
    plain: File | None = None


def test_marks_are_found_in_unions_and_tuples(hub: HubServer) -> None:
    hub.put("user/repo", {"lora.safetensors": OURS})
    names = Path("user/repo")
    found = localized(Marked(one=names, several=(names, names), plain=names))
    assert found.one is not None
    assert {path.name for path in (found.one, *found.several)} == {"lora.safetensors"}
    assert found.plain == names
    assert localized(Marked()) == Marked()
