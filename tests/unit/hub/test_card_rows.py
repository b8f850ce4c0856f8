"""Rows of a card: from a LoRA, from its header, from a report."""

import json
from pathlib import Path

import pytest
import torch

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule
from lbm_lora.hub.card_rows import content_rows, error_rows, measured_errors, report_rows
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.regular_file import file_digest


def adapter(**facts: object) -> Adapter:
    modules = {
        ModuleName(f"m{rank}"): LoraModule(
            ModuleName(f"m{rank}"), down=torch.zeros(rank, 8), up=torch.zeros(8, rank), alpha=float(rank)
        )
        for rank in (2, 4)
    }
    dense = {ParamName("m2.bias"): torch.zeros(8), ParamName("norm1.weight"): torch.zeros(8)}
    header = {name: json.dumps(value) for name, value in facts.items()}
    return Adapter(modules, dense, AdapterMetadata(base_fingerprint="abc", facts=header), "denoiser.")


def test_contents() -> None:
    rows = dict(content_rows(adapter(lbm_lora_settings={"method": "calibrated"}), 1_500_000))
    assert rows == {
        "layers": "2, ranks 2 to 4",
        "biases and norms": "1 bias and 1 norm parameter",
        "file": "1.5 MB, fp32",
        "made": "extracted (calibrated) from a fine-tuned checkpoint",
        "fingerprint of the base": "abc",
    }


def test_errors_of_an_extraction_and_of_a_refinement() -> None:
    extracted = adapter(lbm_lora_errors={"noise_floor": 0.0062, "relative_error": 0.2193, "x_error": 0.5})
    assert measured_errors(extracted) == {"relative_error": 0.2193, "noise_floor": 0.0062, "x_error": 0.5}
    assert error_rows({"relative_error": 0.2193, "x_error": 0.5}) == [
        ("relative error of the weights", "21.9 %"),
        ("x error", "50 %"),
    ]
    refined = adapter(lbm_lora_refinement={"error_before": 0.02, "error_after": 0.01, "step": 7, "lora": "error.x"})
    assert measured_errors(refined) == {"error_before": 0.02, "error_after": 0.01}
    assert ("made", "refined from a fine-tuned checkpoint") in content_rows(refined, 1)


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
        with pytest.warns(LbmLoraWarning, match=r"report\.json is not of this LoRA as it is now"):
            assert report_rows(tmp_path, lora_file) == []


@pytest.mark.parametrize("text", ["{}", "[]", "{", "[" * 10**5, '{"outputs": null}', '{"outputs": {"summary": [1]}}'])
def test_a_report_of_another_kind_gives_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    assert report_rows(tmp_path, None) == []
