"""The error tree: its docstring is the documentation of the exit codes, so it is compared with the classes."""

import inspect
import re
from pathlib import Path

import pytest

from lbm_lora import errors
from lbm_lora.errors import (
    LbmLoraError,
    Option,
    home_path,
    not_there,
)
from lbm_lora.verbs.verb import as_flag

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


WEIGHTS = (".safetensors", ".ckpt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("exact_base.ckpt", "Relight_LoRA.safetensors", "notes.txt", "a.png", "b.png", ".hidden.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / "photos").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("exact_bse.ckpt", "exact_base.ckpt"),
        ("exact_base.safetensors", "exact_base.ckpt"),
        ("relight_lora.safetensors", "Relight_LoRA.safetensors"),
        ("photo", "photos"),
        ("note.txt", None),
    ],
)
def test_the_nearest_name_of_its_kind(folder: Path, name: str, near: str | None) -> None:
    said = (
        f"Did you mean {folder / near}?"
        if near
        else (f"The folder {folder} has Relight_LoRA.safetensors, exact_base.ckpt.")
    )
    assert not_there(folder / name, WEIGHTS) == f"{folder / name} does not exist. {said}"


def test_a_folder_without_such_files_says_what_it_holds(folder: Path) -> None:
    path = folder / "config.yaml"
    assert not_there(path, (".yaml",)) == (
        f"{path} does not exist. The folder {folder} holds 2 .png files, 1 .safetensors file, 1 .ckpt file and more."
    )


def test_a_folder_that_is_not_there_is_named_with_the_nearest(folder: Path) -> None:
    path = folder / "photoes" / "deep" / "a.png"
    assert not_there(path) == (
        f"{path} does not exist. There is no folder {folder / 'photoes'}. Did you mean {folder / 'photos'}?"
    )
    far = folder / "zzz" / "a.png"
    assert not_there(far) == f"{far} does not exist. There is no folder {folder / 'zzz'}."


def test_a_quoted_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert home_path("~/a.png") == Path("/home/me/a.png")
    assert home_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")
    assert home_path("./~/a") == Path("~/a")


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("gone")
    assert not_there(tmp_path / "a") == f"{tmp_path / 'a'} is a link to gone, which does not exist."
