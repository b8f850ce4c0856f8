"""The estimates of memory: the measured rows, scaled."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lbm_lora import bundled
from lbm_lora.configs.calibrate import CalibrateConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.fuse import FuseConfig
from lbm_lora.configs.infer import InferConfig
from lbm_lora.configs.layers import LayersConfig
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.workflows.needs.inputs import Inputs, inputs_of
from lbm_lora.workflows.needs.memory import MEASURED, memory_of, rule_of

MODEL = bundled.TUNED / "model.safetensors"
EXTRACT = ExtractConfig(base_model_path=MODEL, tuned_model_path=MODEL, save_to=Path("x.safetensors"))
INFER = InferConfig(base_model_path=MODEL, source_image=str(bundled.PHOTOS), output_path="out")
ROWS = {
    "base": "`base`, both twins",
    "extract": "`extract`, rank 32/16",
    "extract full rank": "`extract`, full rank",
    "validate": "`validate`, weights",
    "fuse": "`fuse`",
    "calibrate": "`calibrate`, four images of 256 x 256, every timestep",
    "extract calibrated": "`extract --calibration`, with its check",
    "train": "`train`, three steps, 256 x 256, batch of one, rank 32/16",
    "refine": "`refine`, two steps, one image of 256 x 256",
}


def test_the_measured_values_are_those_of_the_page() -> None:
    page = (Path(__file__).parents[4] / "docs/memory.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| (`.*?) \| [\d.]+ s \| ([\d.]+) GB \|$", page, flags=re.MULTILINE))
    assert {rule: f"{one.nbytes / 1e9:.2f}" for rule, one in MEASURED.items()} == {k: shown[v] for k, v in ROWS.items()}


def test_a_model_that_is_not_there_is_taken_to_be_of_full_size() -> None:
    assert memory_of("extract", EXTRACT, Inputs()).nbytes == 630_000_000
    assert memory_of("extract", EXTRACT, Inputs()).basis == "for a model of full size"


def test_a_small_model_needs_little_more_than_its_libraries() -> None:
    """Measured on the mini model: extract 178 MB, fuse 173 MB of anonymous memory."""
    inputs = inputs_of(EXTRACT)
    assert memory_of("extract", EXTRACT, inputs).nbytes == pytest.approx(178e6, rel=0.05)
    fuse = FuseConfig(base_model_path=MODEL, lora_path=(), save_to=Path("x.safetensors"))
    assert memory_of("fuse", fuse, inputs_of(fuse)).nbytes == pytest.approx(173e6, rel=0.05)


def test_options_choose_the_measured_row() -> None:
    assert rule_of("extract", EXTRACT) == "extract"
    assert rule_of("extract", replace(EXTRACT, rank=9999)) == "extract full rank"
    assert rule_of("extract", replace(EXTRACT, calibration_images="photos")) == "extract calibrated"
    calibrate = CalibrateConfig(tuned_model_path=MODEL, images="photos", save_to=Path("s.safetensors"))
    assert rule_of("calibrate", calibrate) == "calibrate"
    validate = ValidateConfig(base_model_path=MODEL, tuned_model_path=MODEL, lora_path=MODEL)
    assert rule_of("validate", validate) == "validate"
    assert rule_of("validate", replace(validate, images="photos")) is None


def test_a_command_without_a_rule_says_so() -> None:
    memory = memory_of("layers", LayersConfig(model_path=MODEL), Inputs())
    assert (memory.nbytes, memory.basis) == (None, "no measured rule for this command")


def test_images_cost_by_their_pixels_and_tiles_bound_them() -> None:
    inputs = inputs_of(INFER)

    def needed(**options: object) -> int:
        found = memory_of("infer", replace(INFER, **options), inputs).nbytes  # pyright: ignore[reportArgumentType]
        assert found is not None
        return found

    own = memory_of("infer", INFER, inputs)
    assert own.basis == "estimated, not measured, at 128 x 128"
    assert own.nbytes == pytest.approx(418e6, rel=0.15)  # measured with a LoRA
    assert needed(size=2048) == needed(size=1024)
    assert needed(size=2048, vae_tiling="off") > 1.5 * needed(size=1024)
    assert needed(torch_dtype="float") - needed() > 2 * 7_000_000 * 2  # converted weights
    assert needed(lora_path=(MODEL,)) > needed(lora_path=(MODEL,), mode="live")
    assert memory_of("infer", INFER, Inputs()).nbytes == 400_000_000 + 2_510_000_000 * 2 + 2_700_000_000
