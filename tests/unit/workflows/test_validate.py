"""The workflow `validate`: numbers, files and gates."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from lbm_lora.errors import AdapterError, ConfigError, QualityError
from lbm_lora.workflows import extract
from lbm_lora.workflows.validate import ValidateConfig, run
from standins import Lbm


@pytest.fixture(scope="module")
def extracted(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> extract.ExtractResult:
    return extract.run(
        extract.ExtractConfig(
            base_model_path=lbm.base,
            tuned_model_path=lbm.tuned,
            save_to=tmp_path_factory.mktemp("lora") / "l.safetensors",
            rank=4,
            conv_rank=4,
        )
    )


@pytest.fixture
def config(lbm: Lbm, extracted: extract.ExtractResult, tmp_path: Path) -> ValidateConfig:
    return ValidateConfig(
        base_model_path=lbm.base, tuned_model_path=lbm.tuned, lora_path=extracted.adapter, report=tmp_path / "report"
    )


def test_it_measures_what_extraction_measured(config: ValidateConfig, extracted: extract.ExtractResult) -> None:
    weights = run(config).report.weights
    assert weights.relative_error == pytest.approx(extracted.report.relative_error, rel=1e-6)
    assert weights.counts == extracted.report.counts
    assert weights.noise_floor == pytest.approx(extracted.report.noise_floor, rel=1e-9)


def test_numbers_against_numpy(config: ValidateConfig, lbm: Lbm) -> None:
    weights = run(config).report.weights
    before, after = load_file(lbm.base), load_file(lbm.tuned)
    lora = load_file(config.lora_path)
    name = "mid_block.attentions.0.proj_in"
    delta = after[f"denoiser.{name}.weight"].double().numpy() - before[f"denoiser.{name}.weight"].double().numpy()
    up, down = (lora[f"denoiser.{name}.lora_{side}.weight"].double().numpy() for side in ("up", "down"))
    error = delta - up @ down
    row = next(row for row in weights.rows if row.name == f"{name}.weight")
    assert row.relative_error == pytest.approx(np.linalg.norm(error) / np.linalg.norm(delta), rel=1e-5)
    assert row.mean_error == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert row.relative_mean_error == pytest.approx(np.abs(error).mean() / np.abs(delta).mean(), rel=1e-5)


def test_the_files(config: ValidateConfig) -> None:
    result = run(config)
    assert [path.name for path in result.files] == ["report.txt", "report.json", "report.html"]
    assert all(path.stat().st_size > 1000 for path in result.files)
    assert json.loads(result.files[1].read_text(encoding="utf-8"))
    names = result.layer_names.read_text(encoding="utf-8").splitlines()
    assert names[2] == ""
    assert len(names) - 3 == result.report.weights.matched
    assert "denoiser.conv_in" in names


def test_images_are_compared_on_equal_latents(config: ValidateConfig, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    result = run(dataclasses.replace(config, images=str(tmp_path / "a.png"), fail_below_psnr=0.0))
    assert result.report.outputs is not None
    scores = {entry.variant: float(entry.worst_psnr) for entry in result.report.outputs.summary}
    assert scores["base + LoRA"] > scores["base"]
    assert result.files[-1].name == "comparison.png"
    assert result.failures == ()
    strict = run(dataclasses.replace(config, images=str(tmp_path / "a.png"), fail_below_psnr=500.0))
    assert "below --fail_below_psnr 500" in strict.failures[0]


def test_the_gate(config: ValidateConfig) -> None:
    error = run(config).report.weights.relative_error
    run(dataclasses.replace(config, fail_above=error * 1.001)).raise_for_quality()
    failed = run(dataclasses.replace(config, fail_above=error * 0.999))
    with pytest.raises(QualityError, match="above --fail_above"):
        failed.raise_for_quality()


def test_a_psnr_limit_needs_images(config: ValidateConfig) -> None:
    with pytest.raises(ConfigError, match=r"^--fail_below_psnr is about pictures"):
        run(dataclasses.replace(config, fail_below_psnr=30.0))


def test_keys_that_match_nothing_count_as_failed(config: ValidateConfig, tmp_path: Path) -> None:
    tensors = load_file(config.lora_path)
    for side in ("up", "down"):
        tensors[f"denoiser.nowhere.lora_{side}.weight"] = tensors[f"denoiser.conv_out.lora_{side}.weight"].clone()
    save_file(tensors, tmp_path / "odd.safetensors")
    odd = dataclasses.replace(config, lora_path=tmp_path / "odd.safetensors")
    with pytest.warns(UserWarning, match="cannot be checked"), pytest.raises(AdapterError, match=r"nowhere\.weight"):
        run(odd)
    with pytest.warns(UserWarning, match="cannot be checked"):
        weights = run(dataclasses.replace(odd, allow_unmatched=True)).report.weights
    assert weights.failed == ("nowhere.weight",)
    assert weights.success_rate == weights.matched / (weights.matched + 1)


def test_layers_left_out_of_the_file_count_in_the_total(config: ValidateConfig, tmp_path: Path) -> None:
    tensors = load_file(config.lora_path)
    kept = {key: tensor for key, tensor in tensors.items() if "attn" in key}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.warns(UserWarning, match="cannot be checked"):
        weights = run(dataclasses.replace(config, lora_path=tmp_path / "part.safetensors")).report.weights
    assert weights.counts["excluded"] > 0
    assert weights.left_out_share > 0.1
    assert weights.relative_error**2 >= weights.left_out_share * 0.999
