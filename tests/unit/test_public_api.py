"""The public page: its names, and what importing it costs."""

import inspect
import subprocess
import sys

import pytest

import lbm_lora
from lbm_lora import errors
from lbm_lora.cli.main import COMMANDS

FUNCTIONS = {
    *("make_base", "extract", "extract_several", "calibrate", "refine", "validate", "fuse", "infer", "layers"),
    *(
        "train",
        "pack_data",
        "check_data",
        "compress",
        "inspect",
        "merge",
        "push",
        "doctor",
        "resize",
        "resize_several",
        "convert",
    ),
}


def test_each_command_has_its_function() -> None:
    """All of them but `demo`, which is the others in turn."""
    several = {"base": "make_base", "data pack": "pack_data", "data check": "check_data"}
    commands = {several.get(command, command) for command in COMMANDS} - {"demo"}
    assert commands == FUNCTIONS - {"extract_several", "resize_several"}
    assert set(lbm_lora.__all__) >= FUNCTIONS


def test_every_error_is_on_the_page() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert len(kinds) == 14
    assert set(lbm_lora.__all__) >= {*kinds, "LbmLoraWarning", "Progress", "SILENT"}


@pytest.mark.parametrize("name", lbm_lora.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(lbm_lora, name) is not None
    assert name in dir(lbm_lora)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = getattr(lbm_lora, name)
    doc = inspect.getdoc(function)
    assert doc is not None
    assert name == "doctor" or all(f"\n{part}:\n" in doc for part in ("Args", "Returns", "Raises"))
    assert "--" not in doc.partition("\nArgs:\n")[2]


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
    assert loaded("import lbm_lora, lbm_lora.cli.main; lbm_lora.InputError") == set()


def test_functions_of_the_core_load_no_network_classes() -> None:
    assert loaded("import lbm_lora; lbm_lora.extract, lbm_lora.validate, lbm_lora.train, lbm_lora.infer") <= {"torch"}


def test_the_check_can_fail() -> None:
    assert loaded("import torch") == {"torch"}


@pytest.mark.parametrize("layer", ["checkpoint", "factorize", "adapter", "extraction", "combine", "apply", "report"])
def test_the_core_loads_nothing_heavier_than_torch(layer: str) -> None:
    assert loaded(f"import lbm_lora.{layer}") <= {"torch"}


@pytest.mark.parametrize("command", ["extract", "validate", "fuse", "layers", "inspect", "merge", "convert"])
def test_commands_of_the_core_need_no_network_classes(command: str) -> None:
    assert loaded(f"import lbm_lora.verbs.{command}, lbm_lora.verbs.lines") <= {"torch"}
