"""A Griffe extension (mkdocs.yml): the reference shows the functions of `lbm_lora.api` as their stubs have them.

A function there takes `**options`, which are the fields of a config; its stub, made by tools/write_api_stubs.py, lists
them with types, defaults and words. Griffe merges a stub into its module but adds no parameters, so this does.
"""

from typing import Any

from griffe import Docstring, Extension, Function, GriffeLoader, Module, visit

PACKAGE = "lbm_lora.api"


class StubSignatures(Extension):
    """Puts parameters and docstrings of stubs into the functions that they are for."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs: Any) -> None:
        """Called when a package is loaded."""
        if pkg.path != PACKAGE.partition(".")[0]:
            return
        for name, module in pkg[PACKAGE.partition(".")[2]].modules.items():
            stub = module.filepath.with_suffix(".pyi")
            if not stub.is_file():
                continue
            stated = visit(name, filepath=stub, code=stub.read_text(encoding="utf-8"), parent=module.parent)
            for function in stated.functions.values():
                documented(module.functions[function.name], function)


def documented(function: Function, stub: Function) -> None:
    """Give a function the parameters and the docstring of its stub."""
    function.parameters = stub.parameters
    if stub.docstring is not None:
        function.docstring = Docstring(
            stub.docstring.value, parent=function, parser=stub.docstring.parser, lineno=stub.docstring.lineno
        )
