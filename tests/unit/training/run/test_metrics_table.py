"""The table of a run's metrics: no row is lost, and no other file is touched."""

from pathlib import Path

import pytest
from file_limits import largest_file

from lbm_lora import atomic
from lbm_lora.errors import OutputError
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.training.run import metrics_table as module
from lbm_lora.training.run.metrics_table import MetricsTable


def rows(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_metric_without_a_column_gets_one(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "logs")
    for step, values in enumerate([{"b": 1.0}, {"b": 2.0}, {"a": 3.0}, {"b": 4.0}], 1):
        table.add(values, step)
    assert rows(tmp_path / "logs/version_0/metrics.csv") == ["a,b,step", ",1.0,1", ",2.0,2", "3.0,,3", ",4.0,4"]


def test_each_table_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for name in ("version_0", "version_7", "version_x", "version_\u00b2"):
        (tmp_path / name).mkdir()
    MetricsTable(tmp_path).add({"a": 1.0}, 1)
    assert rows(tmp_path / "version_8/metrics.csv") == ["a,step", "1.0,1"]


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_full_disk_leaves_whole_rows(tmp_path: Path, name: str) -> None:
    """Whether the row is appended, or the table gets another column."""
    table = MetricsTable(tmp_path)
    table.add({"a": 1.0}, 1)
    path = tmp_path / "version_0/metrics.csv"

    half_a_row = path.stat().st_size + 3
    with largest_file(half_a_row), pytest.raises((OSError, OutputError), match="File too large"):
        table.add({name: 2.0}, 2)
    assert rows(path) == ["a,step", "1.0,1"]


@pytest.mark.parametrize("change", ["edited", "exchanged", "removed"])
def test_a_table_that_is_changed_meanwhile_is_kept(tmp_path: Path, change: str) -> None:
    table = MetricsTable(tmp_path)
    table.add({"a": 1.0}, 1)
    path = tmp_path / "version_0/metrics.csv"
    if change == "exchanged":
        path.parent.rename(tmp_path / "kept")
        path.parent.mkdir()
    path.write_text("step,a,note\n1,1.0,looks good\n")
    if change == "removed":
        path.unlink()
    with pytest.warns(LbmLoraWarning, match=r"metrics\.csv was changed by another program and was kept\."):
        table.add({"a": 2.0, "b": 3.0}, 2)
    table.add({"a": 4.0}, 3)
    if change != "removed":
        assert rows(path) == ["step,a,note", "1,1.0,looks good"]
    assert rows(tmp_path / "version_1/metrics.csv") == ["a,b,step", "2.0,3.0,2", "4.0,,3"]


def test_a_table_that_is_protected_meanwhile_is_kept(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path)
    table.add({"a": 1.0}, 1)
    path = tmp_path / "version_0/metrics.csv"
    path.chmod(0o444)
    with pytest.warns(LbmLoraWarning, match=r"metrics\.csv was changed by another program and was kept\."):
        table.add({"a": 2.0}, 2)
    assert rows(path) == ["a,step", "1.0,1"]
    assert rows(tmp_path / "version_1/metrics.csv") == ["a,step", "2.0,2"]


def test_a_table_that_is_changed_while_it_gets_a_column_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, sync = MetricsTable(tmp_path), atomic.sync
    table.add({"a": 1.0}, 1)
    path = tmp_path / "version_0/metrics.csv"

    def edit(temporary: Path) -> None:
        sync(temporary)
        if temporary.parent.parent == path.parent:
            path.write_text("a,step\n1.0,1\nmine\n")

    monkeypatch.setattr(atomic, "sync", edit)
    with pytest.warns(LbmLoraWarning, match=r"metrics\.csv was changed by another program and was kept"):
        table.add({"b": 2.0}, 2)
    assert rows(path) == ["a,step", "1.0,1", "mine"]
    assert rows(tmp_path / "version_1/metrics.csv") == ["b,step", "2.0,2"]


def test_a_file_that_comes_to_its_place_just_before_a_row_is_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = MetricsTable(tmp_path)
    table.add({"a": 1.0}, 1)
    path, mine = tmp_path / "version_0/metrics.csv", tmp_path / "mine.csv"
    mine.write_text("mine\n")
    is_protected = module.is_protected

    def exchange(here: Path) -> bool:
        if mine.exists():
            mine.replace(here)
        return is_protected(here)

    monkeypatch.setattr(module, "is_protected", exchange)
    with pytest.warns(LbmLoraWarning, match=r"metrics\.csv was changed by another program and was kept\."):
        table.add({"a": 2.0}, 2)
    assert rows(path) == ["mine"]
    assert rows(tmp_path / "version_1/metrics.csv") == ["a,step", "2.0,2"]


def test_a_snapshot_of_hard_links_is_not_changed(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path)
    table.add({"a": 1.0}, 1)
    path, snapshot = tmp_path / "version_0/metrics.csv", tmp_path / "snapshot.csv"
    snapshot.hardlink_to(path)
    for step in (2, 3):
        table.add({"a": 2.0}, step)
    assert rows(snapshot) == ["a,step", "1.0,1"]
    assert rows(path) == ["a,step", "1.0,1", "2.0,2", "2.0,3"]
