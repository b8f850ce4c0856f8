"""The stubs of the functions: they are those of the present configs, and say what a call takes."""

import ast
import inspect

import pytest

import lbm_lora
from tools.write_api_stubs import API, MODULES, stub_of


@pytest.mark.parametrize("module", MODULES)
def test_the_stubs_are_up_to_date(module: str) -> None:
    text = (API / f"{module}.pyi").read_text(encoding="utf-8")
    assert text == stub_of(module), "run: python tools/write_api_stubs.py"


def test_every_function_has_its_parameters_in_a_stub() -> None:
    found = {
        node.name: [one.arg for one in (*node.args.args, *node.args.kwonlyargs)]
        for module in MODULES
        for node in ast.parse(stub_of(module)).body
        if isinstance(node, ast.FunctionDef)
    }
    assert len(found) == 19
    for name, parameters in found.items():
        assert parameters == list(inspect.signature(getattr(lbm_lora, name)).parameters)
    assert "learning_rate" in found["train"]
