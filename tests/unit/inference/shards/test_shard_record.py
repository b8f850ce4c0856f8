"""What is kept of a folder of results, and what is refused because of it."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from lbm_lora import atomic
from lbm_lora.errors import ConfigError, OutputError
from lbm_lora.inference.shards.shard_record import (
    ENDS,
    ShardRecord,
    check_settings,
    contents_of,
    has_records,
    is_record,
    is_result,
    read_record,
    write_record,
    write_settings,
)
from lbm_lora.shards.samples import Skipped


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A result with its record."""
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(range(256)) * 1024)
    write_record(ShardRecord(source="abc", images=3, skipped=(), result=contents_of(path)), path)
    return path


def test_a_record_comes_back(output: Path) -> None:
    record = ShardRecord(
        source="abc", images=3, skipped=(Skipped("a.tar/001", "no source.jpg"),), result=contents_of(output)
    )
    write_record(record, output)
    assert read_record(output) == record
    assert is_result(output)
    assert sorted(path.name for path in output.parent.iterdir()) == ["a.tar", "a.tar.json"]


def test_an_empty_file_has_contents(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    assert contents_of(tmp_path / "a.tar").nbytes == 0


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("at", [0, ENDS - 1, -ENDS, -2])
def test_a_change_at_either_end_is_seen(output: Path, at: int) -> None:
    data = output.read_bytes()
    output.write_bytes(changed(data, at % len(data)))
    assert not is_result(output)
    with pytest.raises(
        OutputError,
        match=r"a\.tar is not the result that a\.tar\.json records: it has other contents "
        r"\(the first or last 64 KiB\)\. Move it, or use overwrite to replace it\.$",
    ):
        read_record(output)
    output.write_bytes(data)
    assert is_result(output)


@pytest.mark.parametrize("data", [b"", b"half", bytes(300_000)])
def test_a_result_of_another_size_is_refused_with_both_sizes(output: Path, data: bytes) -> None:
    output.write_bytes(data)
    with pytest.raises(OutputError, match=rf"records: it has {len(data)} bytes, the result 262144\. Move it, or use"):
        read_record(output)
    assert not is_result(output)


def test_a_record_of_an_earlier_version_describes_no_result(output: Path) -> None:
    path = output.with_name("a.tar.json")
    held: dict[str, Any] = json.loads(path.read_text())
    del held["result"]
    path.write_text(json.dumps(held))
    assert is_record(path)
    assert not is_result(output)
    with pytest.raises(
        OutputError, match=r"a\.tar\.json is of an earlier version and does not describe its result\. Move"
    ):
        read_record(output)


def test_what_is_not_a_file_is_no_result(output: Path) -> None:
    output.unlink()
    assert not is_result(output)
    os.mkfifo(output)
    assert not is_result(output)


UNREADABLE = (
    None,
    "",
    "[]",
    '{"source": "abc"}',
    '{"source": "a", "pictures": 1, "skipped": [1]}',
    '{"source": "a", "pictures": 1, "skipped": [], "result": 1}',
)


@pytest.mark.parametrize("text", UNREADABLE)
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


@pytest.mark.parametrize("seed", [0, 1])
def test_settings_that_appear_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Another process of the same run may have written them; those of another run stay."""
    (tmp_path / "theirs").mkdir()
    write_settings(tmp_path / "theirs", {"seed": seed})
    theirs, sync = tmp_path / "theirs" / "infer.json", atomic.sync

    def appear(path: Path) -> None:
        sync(path)
        theirs.replace(tmp_path / "infer.json")

    monkeypatch.setattr(atomic, "sync", appear)
    with nullcontext() if seed == 0 else pytest.raises(OutputError, match=r"infer\.json appeared while this command"):
        write_settings(tmp_path, {"seed": 0})
    check_settings(tmp_path, {"seed": seed}, started=True)


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


def test_records_of_any_command_tell_that_a_folder_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "a.tar.json").write_text('{"mine": true}')
    assert not has_records(tmp_path)
    write_record(ShardRecord(source="s", images=1, skipped=(), result=None), tmp_path / "b.tar")
    assert has_records(tmp_path)
    assert not has_records(tmp_path / "none")
