"""`validate` and `refine`: values in, values out, as the commands have them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

import lbm_lora
from lbm_lora import Adapter, ConfigError, MeasuredAdapter, RefinedAdapter, ValidateConfig
from lbm_lora.files import file_digest
from standins import Lbm

States = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
FAST: dict[str, Any] = {"size": 64, "device": "cpu"}


@pytest.fixture(scope="module")
def lora(lbm: Lbm) -> MeasuredAdapter:
    return lbm_lora.extract(lbm.base, lbm.tuned, rank=2, conv_rank=2, device="cpu")


def test_extract_save_validate(lbm: Lbm, empty: Path) -> None:
    """The block of the first page of the documentation."""
    lora = lbm_lora.extract(lbm.base, lbm.tuned, rank=32)
    lora.save("lora.safetensors")
    report = lbm_lora.validate(lbm.base, lbm.tuned, lora)
    assert report.weights.relative_error == pytest.approx(lora.report.relative_error)
    assert report.outputs is None
    assert [path.name for path in empty.iterdir()] == ["lora.safetensors"]


def test_weights_and_images_of_values_are_those_of_the_command(
    lbm: Lbm,
    states: States,
    lora: MeasuredAdapter,
    images: list[Image.Image],
    empty: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images[:1], 1):
        image.save(tmp_path / "images" / f"image-{number}.png")
    lora.save(tmp_path / "l.safetensors")
    config = ValidateConfig(
        base_model_path=lbm.base,
        tuned_model_path=lbm.tuned,
        lora_path=tmp_path / "l.safetensors",
        images=str(tmp_path / "images"),
        num_inference_steps=(1,),
        **FAST,
    )
    wanted = lbm_lora.run_validate(config).report
    config_path = lbm.tuned.parent / "config.yaml"
    found = lbm_lora.validate(*states, lora, images=images[0], num_inference_steps=1, config_path=config_path, **FAST)
    assert found.weights.rows == wanted.weights.rows
    assert found.outputs is not None
    assert wanted.outputs is not None
    assert found.outputs.summary == wanted.outputs.summary
    assert (found.weights.base, found.weights.tuned) == ("base state dict", "tuned state dict")
    assert list(empty.iterdir()) == []


def test_further_loras_are_measured_and_the_report_is_written_where_it_is_asked_for(
    lbm: Lbm, lora: MeasuredAdapter, images: list[Image.Image], tmp_path: Path
) -> None:
    other = lbm_lora.extract(lbm.base, lbm.tuned, rank=1, conv_rank=1, save_to=tmp_path / "small.safetensors")
    report = lbm_lora.validate(
        lbm.base, lbm.tuned, lora, other_lora_path=other, images=images[:1], report=tmp_path / "r",
        num_inference_steps=1, **FAST,
    )  # fmt: skip
    assert report.outputs is not None
    assert [entry.variant for entry in report.outputs.summary] == ["base", "base + LoRA", "small"]
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert names == {"report.txt", "report.json", "report.html", "comparison.png", "lora_layer_names.txt"}


def test_a_part_of_a_lora_has_not_the_digest_of_its_file(lbm: Lbm, tmp_path: Path) -> None:
    whole = lbm_lora.extract(lbm.base, lbm.tuned, rank=1, conv_rank=1, save_to=tmp_path / "l.safetensors")
    part = whole.filtered(lambda name: "mid_block" in name)
    digests: list[object] = []
    for adapter in (whole, part):
        lbm_lora.validate(lbm.base, lbm.tuned, adapter, report=tmp_path / "r")
        digests.append(json.loads((tmp_path / "r" / "report.json").read_text())["provenance"]["digests"])
    assert digests == [{"LoRA": file_digest(tmp_path / "l.safetensors")}, {}]


def test_options_of_images_need_images(lbm: Lbm, lora: MeasuredAdapter) -> None:
    with pytest.raises(ConfigError, match=r"^other_lora_path needs images\. Add images, or omit it\.$"):
        lbm_lora.validate(lbm.base, lbm.tuned, lora, other_lora_path=lora)


@pytest.mark.slow
def test_a_refined_adapter_is_that_of_the_file(
    lbm: Lbm, lora: MeasuredAdapter, images: list[Image.Image], empty: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**FAST, "steps": 8, "batch_size": 2, "timesteps": 1000.0}
    kept = lbm_lora.refine(lbm.base, lbm.tuned, lora, images, **options)
    assert isinstance(kept, RefinedAdapter)
    assert kept.outcome.after.typical < kept.outcome.before.typical
    assert list(empty.iterdir()) == []
    path = tmp_path / "refined.safetensors"
    written = lbm_lora.refine(lbm.base, lbm.tuned, lora, images, save_to=path, **options)
    assert written.path == path
    assert written.outcome == kept.outcome
    assert list(Adapter.load(path).modules) == list(kept.modules)
    assert not list(tmp_path.glob("*.pt"))
