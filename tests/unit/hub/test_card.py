"""The model card: what huggingface_hub reads in it, and what people do."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hub_server import card_errors
from lbm_lora.errors import ConfigError
from lbm_lora.hub.card import CardFacts, card_text, check_card, is_unedited_card

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


def test_markup_in_names_is_text() -> None:
    assert "| file | a\\|b \\<script\\> \\`x\\` |" in card_text(FACTS)


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


def test_what_there_is_not_is_not_on_the_card() -> None:
    text = card_text(replace(FACTS, twin=None, images=(), measured=(), relative_error=None))
    check_card(text)
    assert not any(word in text for word in ("diffusers", "Gallery", "measured", "widget", "model-index"))


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


def test_a_card_that_somebody_has_edited_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    text = card_text(FACTS)
    for content, ours in ((text, True), ("", False), (text.replace("5 %", "4 %"), False), (f"{text}\n", False)):
        path.write_text(content, encoding="utf-8")
        assert is_unedited_card(path) == ours
    path.write_bytes(b"\xff")
    assert not is_unedited_card(path)
    assert not is_unedited_card(tmp_path / "none")
