"""What is asked of the hub, and what is said when it does not answer."""

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from lbm_lora.bundled import BACKBONE
from lbm_lora.errors import HubError
from lbm_lora.model import hub
from lbm_lora.model.backbone import open_backbone
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


class FakeHub:
    """A repository: `snapshot_download` makes the files that the patterns allow, empty."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder, self.files, self.fetched = folder, files, []

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        assert repo_id == SDXL
        for name in filter_repo_objects(self.files, allow_patterns=allow_patterns):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).touch()
            self.fetched.append(name)
        return str(self.folder)


@pytest.mark.parametrize(
    ("offered", "fetched"),
    [(FULL + HALF, FULL), (SHARDS + FULL[1:] + HALF, SHARDS + FULL[1:]), (FULL, FULL)],
    ids=["both precisions", "shards", "full only"],
)
def test_only_full_precision_weights_and_configurations_are_fetched(
    offered: list[str], fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHub(tmp_path, CONFIGS + OTHERS + offered)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    assert hub.fetch_backbone(SDXL) == tmp_path
    assert sorted(fake.fetched) == sorted(CONFIGS + fetched)


def test_fp16_weights_are_fetched_where_there_are_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeHub(tmp_path, CONFIGS + OTHERS + HALF)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    assert hub.fetch_backbone(SDXL) == tmp_path
    assert set(fake.fetched) == {*CONFIGS, *HALF}


def test_a_repository_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", FakeHub(tmp_path, CONFIGS + OTHERS).snapshot_download)
    with pytest.raises(HubError, match=r"hub: it has no unet/ and vae/ weights in safetensors\. Give"):
        hub.fetch_backbone(SDXL)


def test_an_unreachable_hub_names_the_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(repo_id: str, *, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no connection\nto the hub.")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(HubError) as caught:
        open_backbone(SDXL, LBMConfig())
    assert str(caught.value) == (
        f"the backbone {SDXL} cannot be fetched from the Hugging Face hub: no connection to the hub. Give "
        "backbone_signature a local diffusers folder (unet/, vae/, scheduler/), a single-file SDXL checkpoint "
        f"(.safetensors), or the bundled mini model: {BACKBONE}"
    )


def test_a_hub_id_gives_a_backbone_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_backbone(tmp_path / "snapshots" / "0123abcd", TINY)
    monkeypatch.setattr(hub, "snapshot_download", lambda repo_id, allow_patterns: str(folder))
    with open_backbone(SDXL, LBMConfig()) as backbone:
        assert backbone.name == SDXL
