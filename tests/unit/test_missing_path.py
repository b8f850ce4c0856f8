"""What is said of a path that is not there."""

from pathlib import Path

import pytest

from lbm_lora.missing_path import held_by, home_path, not_there, real_path, with_name

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


def test_without_a_kind_every_name_will_do(folder: Path) -> None:
    assert (
        not_there(folder / "note.txt") == f"{folder / 'note.txt'} does not exist. Did you mean {folder / 'notes.txt'}?"
    )


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


def test_what_a_folder_holds(folder: Path) -> None:
    (folder / "photos" / "README").touch()
    assert held_by(folder / "photos") == f"The folder {folder / 'photos'} holds 1 file."
    (folder / "photos" / "README").unlink()
    assert held_by(folder / "photos") == f"The folder {folder / 'photos'} is empty."


def test_a_relative_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert not_there(Path("exact_bas.ckpt"), WEIGHTS) == "exact_bas.ckpt does not exist. Did you mean exact_base.ckpt?"


def test_a_folder_that_may_not_be_read_is_no_defect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbm_lora.missing_path.os.access", lambda *_: False)
    assert not_there(folder / "x.ckpt") == f"{folder / 'x.ckpt'} does not exist. The folder {folder} cannot be read."


def test_a_quoted_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert home_path("~/a.png") == Path("/home/me/a.png")
    assert home_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")
    assert home_path("./~/a") == Path("~/a")


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("gone")
    assert not_there(tmp_path / "a") == f"{tmp_path / 'a'} is a link to gone, which does not exist."


def test_a_loop_of_links_has_a_path_too(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path)
    assert real_path(tmp_path / "loop" / "a") == tmp_path / "loop" / "a"
    assert real_path(tmp_path / "link" / "a") == tmp_path / "a"
    assert real_path(Path("a\0b")) == Path("a\0b").absolute()


def test_a_folder_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peft.v2" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "peft.v2")
    assert with_name(Path()) == tmp_path / "peft.v2"
    assert with_name(Path("inner/..")) == tmp_path / "peft.v2"
    assert with_name(Path("x.safetensors")) == Path("x.safetensors")
