"""What a commit may replace in a repository, by the files that are there."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hub_server import HubServer
from lbm_lora.errors import HubError, OutputError
from lbm_lora.hub.card import CardFacts, card_text
from lbm_lora.hub.names import HubName
from lbm_lora.hub.replaced import check_replaced

REPO = HubName("user/repo")
CARD = card_text(
    CardFacts(
        repo="user/repo",
        base_model="user/lbm",
        is_backbone=False,
        license="mit",
        lora="a.safetensors",
        twin=None,
        contents=[],
        measured=[],
    )
).encode()


def weights(**header: str) -> bytes:
    """A `.safetensors` file without tensors."""
    text = json.dumps({"__metadata__": header} if header else {}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """What is to be committed."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for name, data in {"README.md": CARD, "a.safetensors": weights(lbm_lora_format="1")}.items():
        (tmp_path / name).write_bytes(data)
    return {
        "README.md": tmp_path / "README.md",
        "a.safetensors": tmp_path / "a.safetensors",
        "images/a.png": tmp_path / "a.png",
    }


def test_a_new_repository_and_other_files_need_no_question(hub: HubServer, files: dict[str, Path]) -> None:
    check_replaced(REPO, files)
    hub.put("user/repo", {"b.safetensors": b"theirs", "docs/README.md": b"theirs", "images/b.png": b"theirs"})
    check_replaced(REPO, files)


OURS = {
    "README.md": [CARD],
    "a.safetensors": [
        weights(lbm_lora_format="1"),
        weights(lbm_lora_export="diffusers 1"),
        weights(lbm_lora_file="LoRA"),
    ],
}
THEIRS = {
    "README.md": [CARD + b"\nMore.\n", b"# My model\n", b"\xff"],
    "a.safetensors": [
        b"",
        b"theirs",
        b"another program's LoRA",
        weights(),
        weights(format="pt", note="of lbm_lora_format"),
        weights(lbm_lora_statistics="2"),
        weights(lbm_lora_file="base"),
    ],
    "images/a.png": [b"theirs"],
}
WHY = {
    "README.md": "lbm-lora did not write it, or it was edited",
    "a.safetensors": "it is not a LoRA that lbm-lora wrote",
    "images/a.png": "it is another picture",
}


@pytest.mark.parametrize("path", OURS)
def test_what_lbm_lora_wrote_is_replaced(hub: HubServer, files: dict[str, Path], path: str) -> None:
    for data in OURS[path]:
        hub.put("user/repo", {path: data})
        check_replaced(REPO, files)


def test_the_same_picture_is_replaced(hub: HubServer, files: dict[str, Path]) -> None:
    hub.put("user/repo", {"images/a.png": files["images/a.png"].read_bytes()})
    check_replaced(REPO, files)


@pytest.mark.parametrize(("path", "data"), [(path, data) for path, several in THEIRS.items() for data in several])
def test_what_somebody_else_wrote_is_named(hub: HubServer, files: dict[str, Path], path: str, data: bytes) -> None:
    hub.put("user/repo", {path: data})
    with pytest.raises(OutputError) as caught:
        check_replaced(REPO, files)
    assert str(caught.value) == (
        f"{path} exists in user/repo, and {WHY[path]}. Publish to another repository or branch, or use overwrite to "
        "replace it."
    )


def test_only_the_branch_that_is_published_to_is_asked(hub: HubServer, files: dict[str, Path]) -> None:
    branch = HubName("user/repo", revision="v1")
    hub.put("user/repo", {"README.md": b"theirs"})
    check_replaced(branch, files)  # it does not exist yet
    hub.put("user/repo", {"a.safetensors": b"theirs"}, "v1")
    with pytest.raises(OutputError, match=r"^a\.safetensors exists in user/repo@v1, and it is not a LoRA that"):
        check_replaced(branch, files)


def test_weights_are_not_fetched(hub: HubServer, files: dict[str, Path], tmp_path: Path) -> None:
    header = weights(lbm_lora_format="1")
    hub.put("user/repo", {"a.safetensors": header + bytes(1_000_000)})
    check_replaced(REPO, files)
    assert not list((tmp_path / "hub").rglob("a.safetensors"))


def test_a_hub_that_refuses_is_said(hub: HubServer, files: dict[str, Path]) -> None:
    hub.put("user/repo", {"README.md": b"theirs"}, gated=True)
    with pytest.raises(HubError, match=r"^user/repo cannot be published on the Hugging Face hub: its owner must grant"):
        check_replaced(REPO, files)
