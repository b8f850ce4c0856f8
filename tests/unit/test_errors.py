"""The error tree: its docstring is the documentation of the exit codes, so it is compared with the classes."""

import inspect
import re

import pytest

from lbm_lora import errors
from lbm_lora.cli.spelling import as_flag
from lbm_lora.errors import InputError, LbmLoraError, Option, listing, plural

CLASSES = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, LbmLoraError)}


def documented() -> dict[str, int]:
    """Class -> exit code, as the tree in the module's docstring has it; a child without a code has its parent's."""
    tree: dict[str, int] = {}
    code = 0
    for line in (errors.__doc__ or "").splitlines():
        found = re.search(r"(\w+Error)\s+(\d?)", line)
        if found:
            code = int(found[2]) if found[2] else code
            tree[found[1]] = code
    return tree


def test_the_docstring_is_the_tree() -> None:
    assert documented() == {name: kind.exit_code for name, kind in CLASSES.items()}


def test_children_in_the_docstring_are_subclasses() -> None:
    lines = [line for line in (errors.__doc__ or "").splitlines() if re.search(r"│   [├└]", line)]
    names = [match[0] for line in lines if (match := re.search(r"\w+Error", line))]
    assert len(names) == 9
    assert all(issubclass(CLASSES[name], InputError) for name in names)


@pytest.mark.parametrize(
    ("option", "python", "flag"),
    [
        (Option("exclude"), "exclude", "--exclude"),
        (Option("dense", is_off=True), "dense=False", "--no_dense"),
        (Option("biases", "keep|drop"), 'biases="keep" or "drop"', "--biases keep|drop"),
        (Option("images", "FOLDER"), "images", "--images FOLDER"),
    ],
)
def test_an_option_is_an_argument_or_a_flag(option: Option, python: str, flag: str) -> None:
    assert (str(option), as_flag(option)) == (python, flag)


@pytest.mark.parametrize(
    ("names", "limit", "text"),
    [
        ([], 3, ""),
        (["a"], 3, "a"),
        (["a", "b", "c"], 3, "a, b, c"),
        (["a", "b", "c", "d"], 3, "a, b, c and 1 more"),
        ([str(number) for number in range(20)], 8, "0, 1, 2, 3, 4, 5, 6, 7 and 12 more"),
    ],
)
def test_listing(names: list[str], limit: int, text: str) -> None:
    assert listing(iter(names), limit=limit) == text


def test_plural() -> None:
    assert [plural(count, "tensor") for count in (0, 1, 1676)] == ["0 tensors", "1 tensor", "1,676 tensors"]
    assert [plural(count, "matrix", "matrices") for count in (1, 2)] == ["1 matrix", "2 matrices"]


@pytest.mark.parametrize(
    ("missing", "named"),
    [({"a"}, "a, which is"), ({"a", "c"}, "a and c, which are"), ({"a", "b", "c"}, "a, b and c, which are")],
)
def test_missing_packages_are_named_with_the_command_that_installs_them(
    missing: set[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name in missing else True)
    with pytest.raises(errors.MissingExtraError) as caught:
        errors.need_packages("drawing", ("a", "b", "c"), "train")
    assert str(caught.value) == f'drawing needs {named} not installed. Run: pip install "lbm-lora[train]"'
    errors.need_packages("drawing", ("d",), "train")
