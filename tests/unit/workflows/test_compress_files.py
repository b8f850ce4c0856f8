"""The files of `compress`: how they are named, and which base is found."""

from pathlib import Path

import pytest

from lbm_lora.configs.compress import CompressConfig
from lbm_lora.errors import ConfigError
from lbm_lora.workflows.compress_files import CompressFiles, name_of, size_of


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("relight.v1.safetensors", "relight.v1"),
        ("relight.v2.ckpt", "relight.v2"),
        ("relighting/model.safetensors.index.json", "relighting"),
        ("relighting/model.fp16.safetensors", "relighting"),
        ("relighting", "relighting"),
        ("link", "link"),
        ("hf://user/relight", "relight"),
        ("hf://user/relight/model.safetensors@v2", "relight"),
        ("hf://user/relight/v3.safetensors", "v3"),
        (".", "work"),
    ],
)
def test_the_files_are_named_after_the_checkpoint_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, name: str
) -> None:
    (tmp_path / "work/relighting").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    Path("link").symlink_to("relighting")
    assert name_of(CompressConfig(tuned=Path(given))) == name


def test_all_files_are_in_one_folder_and_a_given_name_is_the_loras() -> None:
    files = CompressFiles.of(CompressConfig(tuned=Path("relighting/model.safetensors"), name="small"))
    assert files.folder == Path("small_lora")
    assert files.lora == Path("small_lora/small_lora.safetensors")
    assert {files.base.parent, files.statistics.parent, files.report.parent} == {files.folder}
    given = CompressFiles.of(CompressConfig(tuned=Path("relight.ckpt"), output=Path("out")))
    assert given.lora == Path("out/relight_lora.safetensors")


def test_a_name_that_is_a_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a file name, not a path"):
        CompressFiles.of(CompressConfig(tuned=Path("relight.ckpt"), name="../x"))


def test_a_base_in_the_folder_comes_before_one_next_to_the_checkpoint(tmp_path: Path) -> None:
    tuned, files = tmp_path / "tuned/model.ckpt", CompressFiles(tmp_path / "out", "x")
    for folder in (tuned.parent, files.folder):
        folder.mkdir()
    assert files.found_base(tuned) is None
    beside = tuned.with_name("exact_base.ckpt")
    beside.touch()
    assert files.found_base(tuned) == files.found_base(tuned.parent) == beside
    files.base.touch()
    assert files.found_base(tuned) == files.base


def test_the_default_size_is_a_fiftieth_of_the_checkpoint() -> None:
    config = CompressConfig(tuned=Path("relight.ckpt"))
    assert size_of(config, 5_020_000_000) == "100MB"
    assert size_of(CompressConfig(tuned=Path("relight.ckpt"), size="200 MB"), 5_020_000_000) == "200 MB"
