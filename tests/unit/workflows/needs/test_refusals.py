"""What a command would refuse: extras, options, configuration, device, memory."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora import bundled, errors
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.infer import InferConfig
from lbm_lora.configs.refine import RefineConfig
from lbm_lora.machine import Check
from lbm_lora.workflows.needs import refusals
from lbm_lora.workflows.needs.inputs import Inputs, inputs_of
from lbm_lora.workflows.needs.refusals import memory_check_of, refusal_checks

MODEL = bundled.TUNED / "model.safetensors"
EXTRACT = ExtractConfig(base_model_path=MODEL, tuned_model_path=MODEL, save_to=Path("x.safetensors"))
INFER = InferConfig(base_model_path=MODEL, source_image=str(bundled.PHOTOS), output_path="out")


def found(command: str, config: object) -> dict[str, Check]:
    return {str(one.subject): one for one in refusal_checks(command, config, inputs_of(config))}


def test_missing_packages_are_a_problem_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    refine = RefineConfig(
        base_model_path=MODEL, tuned_model_path=MODEL, lora_path=MODEL, images=str(bundled.PHOTOS), save_to=Path("x")
    )
    assert found("refine", refine)["extras"].level == "ok"
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    extras = found("refine", refine)["extras"]
    assert (extras.level, str(extras.remedy).endswith('pip install "lbm-lora[train]"')) == ("problem", True)
    assert "extras" not in found("extract", EXTRACT)


def test_options_that_do_not_go_together_are_a_problem() -> None:
    assert "options" not in found("extract", EXTRACT)
    refused = found("extract", replace(EXTRACT, images=str(bundled.PHOTOS)))["options"]
    assert "images needs calibration" in str(refused.remedy)


def test_a_checkpoint_without_a_configuration_is_a_problem(tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file({"denoiser.conv_in.weight": torch.zeros(8, 4, 3, 3)}, bare)
    assert "configuration" not in found("infer", INFER)
    refused = found("infer", replace(INFER, base_model_path=bare))["configuration"]
    assert "the configuration of its networks is missing" in str(refused.remedy)


def test_a_device_that_is_not_there_is_noted_and_an_unknown_one_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    absent = found("infer", replace(INFER, device="cuda"))["device"]
    assert (absent.level, str(absent.found)) == ("note", "cuda: runs on cpu")
    assert found("infer", replace(INFER, device="gpu"))["device"].level == "problem"
    assert found("extract", replace(EXTRACT, device="mps"))["device"].level == "problem"
    assert str(found("infer", INFER)["device"].found) == "auto: cpu"


@pytest.mark.parametrize(("free", "level"), [(100_000_000, "problem"), (9_000_000_000, "ok"), (None, "note")])
def test_memory_is_compared_with_what_is_free(free: int | None, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "free_memory", lambda: free)
    one = memory_check_of("infer", INFER, inputs_of(INFER))
    assert one.level == level
    assert ("smaller size" in str(one.remedy)) == (level == "problem")


def test_networks_on_a_card_need_its_memory_and_streams_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "resolve_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (200_000_000, 1))
    monkeypatch.setattr(refusals, "free_memory", lambda: 9_000_000_000)
    card = memory_check_of("infer", INFER, Inputs())
    assert (card.level, str(card.found).endswith("200.0 MB free on cuda:0")) == ("problem", True)
    assert memory_check_of("extract", EXTRACT, Inputs()).level == "ok"
