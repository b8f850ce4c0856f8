"""Write the `.pyi` files of `lbm_lora.api`: each function with its options spelled out, for editors and type checkers.

    python tools/write_api_stubs.py          # after a change of a config or of a function; a test says when

At run time the functions take `**options`, and their signatures and docstrings are made of the configs
(`lbm_lora.api.options`). A stub is the same text as a file: nothing in it is written by hand.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType, NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

import torch

MODULES = ("combined", "loras", "measured", "models", "training", "hub", "formats")
OVERLOADS = {"calibrate": ("networks", "calibrate_network")}
"""Function -> module and function of its other form, which it calls for other types of its first two arguments."""
_FIRST_FORM = {"tuned": "CheckpointLike", "images": "Images"}
"""Types of these arguments in its own form."""
API = Path(__file__).parents[1] / "src/lbm_lora/api"
_HEAD = '"""Made by tools/write_api_stubs.py of the functions and their configs; not to be edited."""'
# names in the types of options -> the modules that they are of
_OF_OPTIONS = {"Any": "typing", "Literal": "typing", "Path": "pathlib", "Sequence": "collections.abc"}


def main() -> None:
    for module in MODULES:
        path = API / f"{module}.pyi"
        path.write_text(stub_of(module), encoding="utf-8")
        print(path)


def stub_of(module: str) -> str:
    """The text of the stub of `lbm_lora.api.<module>`."""
    loaded = import_module(f"lbm_lora.api.{module}")
    tree = ast.parse((API / f"{module}.py").read_text(encoding="utf-8"))
    functions = "\n".join(_forms(node, getattr(loaded, node.name)) for node in _functions(tree))
    known = {name: f"from {place} import {name}" for name, place in _OF_OPTIONS.items()} | _imports(tree)
    known |= {"torch": "import torch", "overload": "from typing import overload"}
    for other, _ in OVERLOADS.values():
        known = _imports(ast.parse((API / f"{other}.py").read_text(encoding="utf-8"))) | known
    code = re.sub(r'""".*?"""', "", functions, flags=re.DOTALL)
    used = sorted({line for name, line in known.items() if re.search(rf"\b{name}\b", code)})
    return "\n".join([_HEAD, "", *used, "", functions])


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def _forms(node: ast.FunctionDef, function: FunctionType) -> str:
    """A function, or its two overloads."""
    if node.name not in OVERLOADS:
        return _function(node, function)
    module, second = OVERLOADS[node.name]
    tree = ast.parse((API / f"{module}.py").read_text(encoding="utf-8"))
    (other,) = [one for one in _functions(tree) if one.name == second]
    loaded = getattr(import_module(f"lbm_lora.api.{module}"), second)
    head, tail = _function(other, loaded), _function(node, function)
    for name, hint in _FIRST_FORM.items():
        tail = re.sub(rf"^    {name}: .*,$", f"    {name}: {hint},", tail, count=1, flags=re.MULTILINE)
    return f"@overload\n{head.replace(f'def {second}(', f'def {node.name}(')}\n@overload\n{tail}"


def _function(node: ast.FunctionDef, function: FunctionType) -> str:
    """Its parameters, those of its own as the source has them, and its docstring."""
    written = {one.arg: one.annotation for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
    lines: list[str] = []
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.KEYWORD_ONLY and "    *," not in lines:
            lines.append("    *,")
        annotation = written.get(one.name)
        hint = _formatted(one.annotation) if annotation is None else _text(annotation)
        default = "" if one.default is one.empty else f" = {_default(one.default)}"
        lines.append(f"    {one.name}: {hint}{default},")
        if node.args.posonlyargs and one.name == node.args.posonlyargs[-1].arg:
            lines.append("    /,")
    assert node.returns is not None
    doc = textwrap.indent(inspect.getdoc(function) or "", "    ")
    head = "\n".join([f"def {node.name}(", *lines, f") -> {_text(node.returns)}:"])
    return f'{head}\n    """{doc.strip()}\n    """\n    ...\n'


def _text(node: ast.expr) -> str:
    """An annotation; one in quotes without them."""
    return str(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def _formatted(hint: Any) -> str:
    """A type of a config as source text."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " | ".join(map(_formatted, arguments))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if hint is torch.dtype:
        return "torch.dtype"
    name = "None" if hint is NoneType else getattr(origin or hint, "__name__", str(hint))
    return f"{name}[{', '.join(map(_formatted, arguments))}]" if arguments else name


def _default(value: object) -> str:
    return f"{value!r}" if isinstance(value, str | int | float | tuple | type(None)) else "..."


def _imports(tree: ast.Module) -> dict[str, str]:
    """Name -> the line that imports it."""
    return dict(_imported(tree.body))


def _imported(nodes: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        if isinstance(node, ast.If):  # TYPE_CHECKING
            yield from _imported(node.body)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
                yield alias.asname or alias.name, f"from {cast(str, node.module)} import {name}"


if __name__ == "__main__":
    main()
