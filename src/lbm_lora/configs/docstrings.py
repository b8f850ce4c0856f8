"""The docstrings below the fields of a config: the text of its options, in every front end."""

import ast
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from textwrap import dedent


@cache
def docstrings(config: type) -> Mapping[str, str]:
    """Return the docstring of each field as one paragraph, including fields of our base classes.

    A package installed without its sources has none.
    """
    root = config.__module__.partition(".")[0]
    ours = [kind for kind in reversed(config.__mro__) if kind.__module__.partition(".")[0] == root]
    return {name: text for kind in ours for name, text in _own(kind)}


def _own(kind: type) -> Iterator[tuple[str, str]]:
    try:
        (tree,) = ast.parse(dedent(inspect.getsource(kind))).body
    except OSError:
        return
    for one, after in pairwise(tree.body if isinstance(tree, ast.ClassDef) else []):
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(text, str):
            yield one.target.id, " ".join(text.split())
