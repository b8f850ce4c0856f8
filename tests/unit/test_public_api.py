"""The public page: its names, and what importing it costs."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lbm_lora
from lbm_lora import errors
from lbm_lora.cli.main import COMMANDS

NAMES = {"base": "make_base", "data pack": "pack_data", "data check": "check_data"}
"""Commands whose functions have another name; `demo` has none, it is the others in turn."""
FUNCTIONS = sorted(
    {NAMES.get(name, name) for name in COMMANDS} - {"demo"} | {"extract_several", "resize_several"},
)


def test_both_lists_of_names_are_equal() -> None:
    """What a type checker reads, and what is loaded on first use."""
    tree = ast.parse(Path(lbm_lora.__file__).read_text(encoding="utf-8"))
    typed = {
        f"{one.module}.{name.asname}" for one in ast.walk(tree) if isinstance(one, ast.ImportFrom)
        for name in one.names if name.asname
    }  # fmt: skip
    assert typed == {f"{module}.{name}" for name, module in lbm_lora._MODULES.items()}
    assert len(lbm_lora.__all__) == len(set(lbm_lora.__all__)) == len(typed) + 1
    for name in lbm_lora.__all__:
        assert getattr(lbm_lora, name) is not None
    assert set(dir(lbm_lora)) >= {*lbm_lora.__all__, *FUNCTIONS}


def test_every_error_is_on_the_page() -> None:
    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert len(kinds) == 14
    assert set(lbm_lora.__all__) >= kinds


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_types_and_says_what_it_takes_and_gives(name: str) -> None:
    function = getattr(lbm_lora, name)
    doc, signature = inspect.getdoc(function), inspect.signature(function)
    assert doc is not None
    assert "\nArgs:\n" in doc or name == "doctor"
    assert signature.return_annotation is not inspect.Signature.empty
    for one in signature.parameters.values():
        assert one.annotation is not inspect.Parameter.empty, one
        assert one.kind is not one.VAR_KEYWORD or name == "train", "keys of the training file"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lbm_lora' has no attribute 'exract'"):
        _ = lbm_lora.exract  # pyright: ignore[reportAttributeAccessIssue]


HEAVY = ["torch", "diffusers", "transformers", "PIL", "torchmetrics", "plotly", "peft", "gradio", "lightning"]
CORE = ("checkpoint", "factorize", "adapter", "extraction", "combine", "apply", "report")


def loaded(statement: str) -> set[str]:
    """Heavy libraries that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_importing_the_package_or_a_verb_loads_no_torch() -> None:
    assert loaded("import lbm_lora, lbm_lora.cli.main; lbm_lora.InputError, lbm_lora.extract, lbm_lora.merge") == set()


def test_the_core_loads_nothing_heavier_than_torch() -> None:
    assert loaded(f"import {', '.join(f'lbm_lora.{room}' for room in CORE)}; lbm_lora.load_adapter") == {"torch"}
