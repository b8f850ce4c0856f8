"""The public page: its names, and what importing it costs."""

import subprocess
import sys

import pytest

import lbm_lora

NAMES = [
    "Adapter",
    "BaseConfig",
    "ExtractConfig",
    "FuseConfig",
    "InferConfig",
    "InputError",
    "LBMModel",
    "LBMPipeline",
    "LayersConfig",
    "LbmLoraError",
    "LoraModule",
    "QualityError",
    "ScaledAdapter",
    "ValidateConfig",
    "__version__",
    "fuse_module",
    "inject",
    "load_adapter",
    "load_model",
    "open_checkpoint",
    "run_base",
    "run_extract",
    "run_fuse",
    "run_infer",
    "run_layers",
    "run_validate",
    "save_adapter",
]


def test_the_public_names_are_these() -> None:
    assert sorted(lbm_lora.__all__) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(lbm_lora, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lbm_lora' has no attribute 'exract'"):
        _ = lbm_lora.exract  # pyright: ignore[reportAttributeAccessIssue]


HEAVY = ["torch", "diffusers", "transformers", "PIL", "torchmetrics", "plotly", "peft", "gradio", "lightning"]


def loaded(statement: str) -> set[str]:
    """Which heavy libraries a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_importing_the_package_loads_no_torch() -> None:
    assert loaded("import lbm_lora, lbm_lora.cli.main") == set()


def test_the_check_can_fail() -> None:
    assert loaded("import torch") == {"torch"}


@pytest.mark.parametrize("layer", ["checkpoint", "factorize", "adapter", "extraction", "apply", "report"])
def test_the_core_loads_nothing_heavier_than_torch(layer: str) -> None:
    assert loaded(f"import lbm_lora.{layer}") <= {"torch"}


@pytest.mark.parametrize("command", ["extract", "validate", "fuse", "layers"])
def test_commands_of_the_core_need_no_network_classes(command: str) -> None:
    assert loaded(f"import lbm_lora.workflows.{command}, lbm_lora.cli.present") <= {"torch"}
