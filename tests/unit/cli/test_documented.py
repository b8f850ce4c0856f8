"""The documented scripts: their default paths, and where they look for the base."""

from pathlib import Path
from typing import Any

import pytest

from lbm_lora.cli.documented import SCRIPTS, completed
from lbm_lora.cli.main import parse

CHECKPOINTS = Path("lora/checkpoints")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the scripts are started."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values_of(script: str, *arguments: str) -> dict[str, Any]:
    """Values of the verb's parameters."""
    command, defaults = SCRIPTS[script]
    return parse(command, completed(list(arguments), defaults))[0]


def put(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch()


def test_default_paths_are_the_documented_ones() -> None:
    base = values_of("create_exact_base_model")
    assert base["config_path"] == Path("examples/inference/ckpts/relighting/config.yaml")
    assert base["save_path"] == CHECKPOINTS / "base" / "exact_lbm_base.ckpt"
    extract = values_of("extract_lora_native")
    assert extract["base"] == CHECKPOINTS / "exact_base.ckpt"
    assert extract["save_to"] == CHECKPOINTS / "my_lora.safetensors"
    assert values_of("test_reconstruction_simple")["layer_names"] == Path("lora/lora_layer_names.txt")
    assert values_of("train_lora")["config"] == Path("lora/lora_relight_config.yaml")


@pytest.mark.parametrize("there", ["lora/exact_base.ckpt", "lora/checkpoints/base/exact_lbm_base.ckpt"])
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--base_model_path", "lora/exact_base.ckpt"],
        ["--base_model_path=lora/checkpoints/exact_base.ckpt"],
        ["--base-model-path", "lora/checkpoints/base/exact_lbm_base.ckpt"],
    ],
)
def test_the_base_is_read_where_it_is(there: str, arguments: list[str]) -> None:
    put(there)
    assert values_of("extract_lora_native", *arguments)["base"] == Path(there)


def test_a_base_that_is_nowhere_is_asked_for_by_its_name() -> None:
    assert values_of("extract_lora_native")["base"] == CHECKPOINTS / "exact_base.ckpt"
    asked = values_of("extract_lora_native", "--base_model_path", "elsewhere/exact_base.ckpt")
    assert asked["base"] == Path("elsewhere/exact_base.ckpt")


@pytest.mark.parametrize("there", ["lora/exact_base.ckpt", "lora/checkpoints/base/exact_lbm_base.ckpt"])
def test_a_base_is_written_where_it_is_asked_for(there: str) -> None:
    """Not over one that stands elsewhere."""
    put(there)
    asked = values_of("create_exact_base_model", "--save_path", "lora/checkpoints/exact_base.ckpt")
    assert asked["save_path"] == CHECKPOINTS / "exact_base.ckpt"


def test_the_source_is_copied_beside_the_output() -> None:
    assert values_of("inference_native")["save_input"]
    assert not values_of("inference_native", "--no_save_input")["save_input"]


def test_help_is_left_alone() -> None:
    assert completed(["--help"], SCRIPTS["inference_native"][1]) == ["--help"]
