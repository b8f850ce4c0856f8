"""What is kept of a folder of results, and what is refused because of it."""

from pathlib import Path

import pytest

from lbm_lora.errors import ConfigError
from lbm_lora.inference.shards.shard_record import (
    ShardRecord,
    check_settings,
    read_record,
    write_record,
    write_settings,
)
from lbm_lora.shards.samples import Skipped


def test_a_record_comes_back(tmp_path: Path) -> None:
    record = ShardRecord(source="abc", images=3, skipped=(Skipped("a.tar/001", "no source.jpg"),))
    write_record(record, tmp_path / "a.tar")
    assert read_record(tmp_path / "a.tar") == record
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.json"]


@pytest.mark.parametrize(
    "text", [None, "", "[]", '{"source": "abc"}', '{"source": "a", "pictures": 1, "skipped": [1]}']
)
def test_an_output_of_unknown_origin_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "a.tar.json").write_text(text)
    with pytest.raises(
        ConfigError, match=r"a\.tar exists, but no a\.tar\.json records how it was made\. Translate into"
    ):
        read_record(tmp_path / "a.tar")


def test_the_same_settings_pass_and_are_kept(tmp_path: Path) -> None:
    settings = {"seed": 0, "lora_scale": [1.0, 0.1], "size": None}
    check_settings(tmp_path, settings, started=False)
    write_settings(tmp_path, settings)
    before = (tmp_path / "infer.json").read_bytes()
    check_settings(tmp_path, settings, started=True)
    write_settings(tmp_path, settings)
    assert (tmp_path / "infer.json").read_bytes() == before


def test_what_differs_is_named_with_both_values(tmp_path: Path) -> None:
    write_settings(tmp_path, {"seed": 0, "mode": "fused", "size": None})
    with pytest.raises(ConfigError, match=r"seed was 0 and is now 1, size was None and is now 64\. Translate into"):
        check_settings(tmp_path, {"seed": 1, "mode": "fused", "size": 64}, started=False)


def test_results_without_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds results, but no infer\.json records how they were made"):
        check_settings(tmp_path, {"seed": 0}, started=True)


@pytest.mark.parametrize("text", ["", "[]"])
def test_damaged_settings_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "infer.json").write_text(text)
    with pytest.raises(ConfigError, match=r"infer\.json cannot be read as the settings of a run"):
        check_settings(tmp_path, {"seed": 0}, started=False)
