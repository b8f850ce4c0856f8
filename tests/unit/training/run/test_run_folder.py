"""The files of a run: names, the last one, how many are kept, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lbm_lora.errors import ConfigError, OutputError
from lbm_lora.private_folder import NOTE, NOTE_TEXT
from lbm_lora.training.run import run_folder as module
from lbm_lora.training.run.run_folder import RunFolder, link

OURS = '{"__metadata__":{"lbm_lora_format":"1"}}'


def write(text: str) -> Callable[[Path], None]:
    """What writes a text."""

    def to(path: Path) -> None:
        path.write_text(OURS + text)

    return to


def is_own(step: int, path: Path) -> bool:
    return path.read_text() == f"{OURS}{step}"


def save(
    folder: RunFolder,
    step: int,
    saved: tuple[int, ...],
    *,
    keep: int | None = 1,
    is_own: Callable[[int, Path], bool] = is_own,
) -> tuple[int, ...]:
    """Save a step, and return the steps that are there then."""
    folder.save_step(step, write(str(step)))
    return folder.keep_newest(keep, {*saved, step}, is_own=is_own)


def test_saves_are_numbered_and_the_newest_is_the_last(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    saved: tuple[int, ...] = ()
    for step in (999_998, 999_999, 1_000_000):
        saved = save(folder, step, saved, keep=2)
    assert saved == (999_999, 1_000_000)
    assert [path.name for path in folder.step_files()] == ["step-999999.safetensors", "step-1000000.safetensors"]
    assert folder.last.read_text() == f"{OURS}1000000"
    assert save(folder, 1_000_001, saved, keep=None) == (*saved, 1_000_001)
    assert len(folder.step_files()) == 3


def test_only_files_of_the_run_are_removed(tmp_path: Path) -> None:
    """Neither those of another run, nor what somebody put in the place of one of its own."""
    folder = RunFolder(tmp_path)
    folder.step_file(1).write_text(f"{OURS}another run's")
    saved: tuple[int, ...] = ()
    for step in (2, 3, 4, 5):
        saved = save(folder, step, saved)
        if step == 2:
            folder.step_file(2).write_text("somebody's")
        if step == 3:
            folder.step_file(3).write_text(f"{OURS}7")  # a LoRA of another step
    assert [path.name for path in folder.step_files()] == [f"step-00000{step}.safetensors" for step in (1, 2, 3, 5)]


@pytest.mark.parametrize("is_exchanged", [True, False])
def test_a_step_that_is_moved_away_while_it_is_looked_at_is_not_removed(tmp_path: Path, is_exchanged: bool) -> None:
    folder = RunFolder(tmp_path)
    saved = save(folder, 1, ())

    def is_own_but_moved(step: int, path: Path) -> bool:
        found = is_own(step, path)
        path.rename(tmp_path / "moved")
        if is_exchanged:
            path.write_text("somebody's")
        return found

    assert save(folder, 2, saved, is_own=is_own_but_moved) == (2,)
    assert (tmp_path / "moved").read_text() == f"{OURS}1"
    assert folder.step_file(1).exists() == is_exchanged


def test_a_protected_step_is_not_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    saved: tuple[int, ...] = ()
    for step in (1, 2, 3):
        saved = save(folder, step, saved)
        if step == 1:
            folder.step_file(1).chmod(0o444)
    assert [path.name for path in folder.step_files()] == ["step-000001.safetensors", "step-000003.safetensors"]


def test_a_step_that_a_link_in_the_folder_leads_to_is_not_removed(tmp_path: Path) -> None:
    """The user's own choice, in a run without a validation."""
    folder, saved = RunFolder(tmp_path), ()
    for step in (1, 2, 3):
        saved = save(folder, step, saved)
        if step == 1:
            folder.best.symlink_to(folder.step_file(1).name)
    assert folder.best.read_text() == f"{OURS}1"
    assert folder.step_files() == [folder.step_file(1), folder.step_file(3)]


def test_the_last_one_takes_no_room_of_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_step(1, write("1"))
    path = folder.step_file(1)
    assert path.samefile(folder.last)
    path.unlink()
    assert folder.last.read_text() == f"{OURS}1"


def test_the_last_one_is_there_also_if_somebody_moves_that_of_the_step_away_at_once(tmp_path: Path) -> None:
    folder, moved = RunFolder(tmp_path), tmp_path / "moved.safetensors"
    path = folder.step_file(1)

    def write_and_move(target: Path) -> None:
        write("1")(target)
        if target == path:
            path.rename(moved)

    folder.save_step(1, write_and_move)
    assert folder.last.read_text() == moved.read_text() == f"{OURS}1"


def test_a_disk_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(module.os, "link", refuse)
    (tmp_path / "a").write_text("1")
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_another_file_of_a_like_name_is_no_save(tmp_path: Path) -> None:
    (tmp_path / "step-12.safetensors").touch()
    (tmp_path / "step-000012.txt").touch()
    assert RunFolder(tmp_path).results() == []
    RunFolder(tmp_path).refuse_results()
    RunFolder(tmp_path / "none").refuse_results()


def test_a_run_is_not_started_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_step(1, write("1"))
    with pytest.raises(ConfigError, match=r"holds a run: step-000001\.safetensors, last\.safetensors\. Choose another"):
        folder.refuse_results()


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    parts = [
        ".step-000012.safetensors.77.part",
        ".resume.pt.1.part",
        ".last.safetensors.12.part",
        ".config.yaml.0.part",
    ]
    parts.append("pictures/.step-000012.png.0.part")
    (tmp_path / "pictures").mkdir()
    others = [".other.77.part", "notes.part"]
    for name in (*parts, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / NOTE).write_bytes(NOTE_TEXT)
    others += ["step-000012.safetensors", "resume.pt", ".best.safetensors.12.part"]
    for name in others[2:]:
        (tmp_path / name).write_text(OURS)
    RunFolder(tmp_path).remove_parts()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "pictures"])
    assert list((tmp_path / "pictures").iterdir()) == []
    RunFolder(tmp_path / "none").remove_parts()


@pytest.mark.parametrize(
    ("name", "pictures", "logger", "said"),
    [
        ("pictures", True, "none", "a picture of the run would be in {}, which is a file. Choose another path."),
        ("pictures", False, "csv", ""),
        ("logs", False, "tensorboard", "a log of the run would be in {}, which is a file. Choose another path."),
        ("logs", False, "csv", "a log of the run would be in {}, which is a file. Choose another path."),
        ("logs/version_0", False, "csv", ""),
        ("logs/version_0", False, "tensorboard", ""),
        ("logs", True, "wandb", ""),
    ],
)
def test_a_file_where_a_folder_of_the_run_should_be(
    tmp_path: Path, name: str, pictures: bool, logger: str, said: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.check_folders(pictures=pictures, logger=logger)
    (folder.path / name).parent.mkdir(parents=True)
    (folder.path / name).write_text("mine")
    if not said:
        folder.check_folders(pictures=pictures, logger=logger)
        return
    with pytest.raises(OutputError) as caught:
        folder.check_folders(pictures=pictures, logger=logger)
    assert str(caught.value) == said.format(folder.path / name)


def test_a_save_of_another_run_is_noticed_and_another_inode_is_not(tmp_path: Path) -> None:
    """Some disks (FUSE) give a file another inode each time that they look it up."""
    folder = RunFolder(tmp_path)
    folder.last.write_text(OURS)
    before = folder.marks()
    shutil.copy2(folder.last, tmp_path / "copy")
    (tmp_path / "copy").replace(folder.last)
    folder.check_same(before)
    folder.state.write_text("another run's")
    with pytest.raises(ConfigError, match="another run has written to"):
        folder.check_same(before)
