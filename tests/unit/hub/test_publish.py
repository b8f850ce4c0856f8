"""Model cards, as huggingface_hub reads them and as people edit them, and what a commit may replace."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hub_server import HubServer, card_errors
from lbm_lora.errors import ConfigError, HubError, OutputError
from lbm_lora.files import file_digest
from lbm_lora.hub.card import (
    CardFacts,
    card_text,
    check_card,
    report_rows,
)
from lbm_lora.hub.names import HubName
from lbm_lora.hub.publish import check_replaced
from lbm_lora.progress import LbmLoraWarning

FACTS = CardFacts(
    repo="user/relight",
    base_model="stabilityai/stable-diffusion-xl-base-1.0",
    is_backbone=True,
    license="cc-by-nc-4.0",
    lora="a.safetensors",
    twin="pytorch_lora_weights.safetensors",
    contents=[("layers", "792"), ("file", "a|b <script> `x`")],
    measured=[("relative error", "5 %")],
    lost="It leaves out 512 norm parameters.",
    remarks=["diffusers cannot fuse it."],
    images=["images/lemon.png"],
    relative_error=0.05,
)


def test_the_metadata_is_what_the_hub_documents() -> None:
    text = card_text(FACTS)
    check_card(text)
    assert list(card_errors(text)) == []
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert (
        data.to_dict().items()
        >= {
            "base_model": "stabilityai/stable-diffusion-xl-base-1.0",
            "base_model_relation": "adapter",
            "library_name": "lbm-lora",
            "license": "cc-by-nc-4.0",
            "pipeline_tag": "image-to-image",
            "tags": ["lora", "lbm", "latent-bridge-matching", "image-to-image"],
            "widget": [{"text": "lemon", "output": {"url": "images/lemon.png"}}],
        }.items()
    )
    [result] = data.to_dict()["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "relative_error", "value": 0.05, "name": "Relative error (Frobenius)"}]


def test_how_to_use_it() -> None:
    text = card_text(FACTS)
    assert (
        "lbm-lora base --backbone_signature stabilityai/stable-diffusion-xl-base-1.0 \\\n  --save_path base.s" in text
    )
    assert "--base_model_path base.safetensors --lora_path user/relight " in text
    assert '"user/relight", weight_name="pytorch_lora_weights.safetensors", prefix="unet"' in text
    assert "It leaves out 512 norm parameters. diffusers cannot fuse it.\n" in text
    other = card_text(replace(FACTS, base_model="user/lbm", is_backbone=False))
    assert "--base_model_path user/lbm --lora_path user/relight " in other
    assert "lbm-lora base" not in other


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "---\nlicense: mit\n---\n",
            "the model card lacks base_model, base_model_relation, library",
        ),
        ("---\n- a\n---\n", "the model card is not valid: "),
        ("---\nmodel-index: 3\n---\n", "the model card is not valid: "),
    ],
)
def test_a_card_that_is_not_valid(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_card(text)


def test_a_report_gives_the_psnr_of_the_lora(tmp_path: Path) -> None:
    made = tmp_path / "x.safetensors"
    made.write_bytes(b"a LoRA")
    assert report_rows(tmp_path, made) == []
    lora = {"variant": "base + LoRA", "steps": 1, "mean_psnr": 41.26, "worst_psnr": 38.0}
    outputs = {"summary": [{**lora, "variant": "base"}, lora]}
    summary = {"outputs": outputs, "provenance": {"digests": {"LoRA": file_digest(made)}}}
    (tmp_path / "report.json").write_text(json.dumps(summary))
    assert report_rows(tmp_path, made) == [
        ("images at 1 step, to the tuned model's", "PSNR 41.3 dB on average, 38.0 dB at worst")
    ]
    made.write_bytes(b"another LoRA of that name")
    for lora_file in (made, None):
        with pytest.warns(LbmLoraWarning, match=r"report\.json reports on another version of this LoRA"):
            assert report_rows(tmp_path, lora_file) == []


@pytest.mark.parametrize("text", ["{}", "[]", "{", "[" * 10**5, '{"outputs": null}', '{"outputs": {"summary": [1]}}'])
def test_a_report_of_another_kind_gives_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    assert report_rows(tmp_path, None) == []


REPO = HubName("user/repo")
CARD = card_text(FACTS).encode()


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
    "a.safetensors": [weights(lbm_lora_format="1"), weights(lbm_lora_export="diffusers 1")],
}
THEIRS = {
    "README.md": [b"# My model\n"],
    "a.safetensors": [b"", b"another program's LoRA", weights(format="pt", note="of lbm_lora_format")],
    "images/a.png": [b"theirs"],
}
WHY = {
    "README.md": "lbm-lora did not write it",
    "a.safetensors": "it is not a LoRA that lbm-lora wrote",
    "images/a.png": "it is another picture",
}


@pytest.mark.parametrize("path", OURS)
def test_what_lbm_lora_wrote_is_replaced(hub: HubServer, files: dict[str, Path], path: str) -> None:
    for data in OURS[path]:
        hub.put("user/repo", {path: data})
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


def test_a_hub_that_refuses_is_said(hub: HubServer, files: dict[str, Path]) -> None:
    hub.put("user/repo", {"README.md": b"theirs"}, gated=True)
    with pytest.raises(HubError, match=r"^user/repo cannot be published on the Hugging Face hub: its owner must grant"):
        check_replaced(REPO, files)
