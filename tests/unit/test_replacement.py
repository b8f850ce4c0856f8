"""New files get their paths together, and after an error the old ones have them again."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from lbm_lora import replacement
from lbm_lora.errors import OutputError
from lbm_lora.replacement import Draft, replace_all, sync_folder, version_at

NAMES = ("a", "b", "c")


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def drafts(tmp_path: Path) -> list[Draft]:
    """Drafts of three files in `out`, of which two are there."""
    for name in ("out", "new", "old"):
        (tmp_path / name).mkdir()
    for name in NAMES:
        (tmp_path / "new" / name).write_text(f"new {name}")
    for name in ("a", "c"):
        (tmp_path / "out" / name).write_text(f"old {name}")
    return [draft(tmp_path / "out" / name, tmp_path / "new" / name, tmp_path / "old" / name) for name in NAMES]


def draft(path: Path, file: Path, spare: Path) -> Draft:
    return Draft(path=path, file=file, spare=spare, replaced=version_at(path))


def before_rename(monkeypatch: pytest.MonkeyPatch, name: str, do: Callable[[Path], object]) -> None:
    replace, link = Path.replace, os.link

    def replaced(self: Path, target: Path) -> Path:
        if self.parent.name == "new" and self.name == name:
            do(target)
        return replace(self, target)

    def linked(source: Path, target: Path, **options: bool) -> None:
        if source.parent.name == "new" and source.name == name:
            do(target)
        link(source, target, **options)

    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(os, "link", linked)


def refuse(path: Path) -> None:
    """What the system says of a file that is mounted."""
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), "a draft", None, str(path))


def interrupt(_: Path) -> None:
    raise KeyboardInterrupt


def test_all_are_replaced(tmp_path: Path, drafts: list[Draft]) -> None:
    replace_all(drafts)
    assert files(tmp_path / "out") == {name: f"new {name}" for name in NAMES}


def test_what_was_private_stays_private(tmp_path: Path, drafts: list[Draft]) -> None:
    (tmp_path / "out" / "a").chmod(0o600)
    fresh = (tmp_path / "new" / "b").stat().st_mode
    replace_all(drafts)
    assert (tmp_path / "out" / "a").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out" / "b").stat().st_mode == fresh


@pytest.mark.parametrize("may_give", [True, False])
def test_owner_and_group_are_kept_or_the_group_loses_its_permissions(
    tmp_path: Path, drafts: list[Draft], monkeypatch: pytest.MonkeyPatch, may_give: bool
) -> None:
    old, given = tmp_path / "out" / "a", list[tuple[str, int, int]]()
    old.chmod(0o640)
    lstat = Path.lstat

    def of_somebody(path: Path) -> os.stat_result:
        found = lstat(path)
        if path != old:
            return found
        return os.stat_result((*found[:4], found.st_uid + 7, found.st_gid + 8, *found[6:10]))

    def chown(path: Path, user: int, group: int) -> None:
        given.append((path.name, user, group))
        if not may_give:
            raise PermissionError

    monkeypatch.setattr(Path, "lstat", of_somebody)
    monkeypatch.setattr(os, "chown", chown)
    user, group = os.getuid(), lstat(old).st_gid
    replace_all(drafts)
    assert given == [("a", user + 7, -1), ("a", -1, group + 8)]
    assert lstat(old).st_mode & 0o777 == (0o640 if may_give else 0o600)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [refuse, interrupt])
def test_a_rename_that_fails_puts_all_old_files_back(
    tmp_path: Path, drafts: list[Draft], monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[[Path], object]
) -> None:
    before_rename(monkeypatch, name, fault)
    with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
        replace_all(drafts)
    assert files(tmp_path / "out") == {"a": "old a", "c": "old c"}
    if fault is refuse:
        reason = os.strerror(errno.EBUSY)
        said = f"{tmp_path / 'out' / name} cannot be written: {reason}. Choose another output path."
        assert str(caught.value) == said


@pytest.mark.parametrize("was_there", [False, True])
def test_two_names_that_are_one_to_the_disk(tmp_path: Path, *, was_there: bool) -> None:
    """As `Photo.jpg` and `photo.jpg` are on some disks: here the folder has two names."""
    out, again = tmp_path / "out", tmp_path / "again"
    out.mkdir()
    again.symlink_to(out)
    if was_there:
        (out / "a").write_text("old")
    for name in ("1", "2"):
        (tmp_path / name).write_text(f"new {name}")
    drafts = [
        draft(folder / "a", tmp_path / name, tmp_path / f"spare {name}") for folder, name in ((out, "1"), (again, "2"))
    ]
    with pytest.raises(OutputError, match=r"out/a and .*again/a are one file: the disk does not tell"):
        replace_all(drafts)
    assert files(out) == ({"a": "old"} if was_there else {})


def test_a_folder_that_is_not_flushed_gets_its_files_back(
    tmp_path: Path, drafts: list[Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        replace_all(drafts)
    assert files(tmp_path / "out") == {"a": "old a", "c": "old c"}


def test_a_path_is_never_without_its_file(tmp_path: Path, drafts: list[Draft], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed there leaves the old file, and one more name of it."""
    found: list[str] = []
    before_rename(monkeypatch, "a", lambda path: found.append(path.read_text()))
    before_rename(monkeypatch, "c", lambda path: found.append(path.read_text()))
    replace_all(drafts)
    assert found == ["old a", "old c"]


def test_what_another_writer_put_there_meanwhile_stays(
    tmp_path: Path, drafts: list[Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_refuse(path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / "theirs").write_text(f"their {name}")
            (tmp_path / "theirs").rename(tmp_path / "out" / name)
        refuse(path)

    before_rename(monkeypatch, "c", write_and_refuse)
    with pytest.raises(OutputError):
        replace_all(drafts)
    assert files(tmp_path / "out") == {"a": "their a", "b": "their b", "c": "old c"}


def test_a_link_gets_its_path_back_as_a_link(
    tmp_path: Path, drafts: list[Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "a").rename(tmp_path / "linked")
    (tmp_path / "out" / "a").symlink_to("../linked")
    drafts[0] = replace(drafts[0], replaced=version_at(drafts[0].path))
    before_rename(monkeypatch, "c", refuse)
    with pytest.raises(OutputError):
        replace_all(drafts)
    assert (tmp_path / "out" / "a").readlink() == Path("../linked")
    assert (tmp_path / "linked").read_text() == "old a"


def test_a_disk_without_hard_links_has_complete_files(
    tmp_path: Path, drafts: list[Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was replaced there stays replaced: the old file has no other name."""

    def failing(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", failing)
    with monkeypatch.context() as patch:
        before_rename(patch, "c", refuse)
        with pytest.raises(OutputError):
            replace_all(drafts)
    assert files(tmp_path / "out") == {"a": "new a", "c": "old c"}
    (tmp_path / "new" / "a").write_text("newer a")
    (tmp_path / "new" / "b").write_text("newer b")
    replace_all(drafts)
    assert files(tmp_path / "out") == {"a": "newer a", "b": "newer b", "c": "new c"}


def test_further_interrupts_do_not_lose_the_old_files(
    tmp_path: Path, drafts: list[Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, put_back, calls = files(tmp_path / "out"), replacement._put_back, count()

    def interrupted(draft: Draft, new: os.stat_result, *, was_there: bool) -> None:
        if 1 <= next(calls) <= 3:
            raise KeyboardInterrupt
        put_back(draft, new, was_there=was_there)

    before_rename(monkeypatch, "c", interrupt)
    monkeypatch.setattr(replacement, "_put_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_all(drafts)
    assert files(tmp_path / "out") == before


def test_an_old_file_comes_back_where_the_new_one_was_moved_away(
    tmp_path: Path, drafts: list[Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(tmp_path / "out")

    def move(_: Path) -> None:
        (tmp_path / "out" / "a").rename(tmp_path / "moved")
        interrupt(_)

    before_rename(monkeypatch, "b", move)
    with pytest.raises(KeyboardInterrupt):
        replace_all(drafts)
    assert files(tmp_path / "out") == before
    assert (tmp_path / "moved").read_text() == "new a"


def test_an_old_file_that_was_moved_away_gets_no_second_name(
    tmp_path: Path, drafts: list[Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    def move(path: Path) -> None:
        path.rename(tmp_path / "moved")
        interrupt(path)

    before_rename(monkeypatch, "c", move)
    with pytest.raises(KeyboardInterrupt):
        replace_all(drafts)
    assert files(tmp_path / "out") == {"a": "old a"}
    assert (tmp_path / "moved").read_text() == "old c"


def test_a_disk_without_room_for_a_second_name_keeps_the_old_files(
    tmp_path: Path, drafts: list[Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link may take an inode of its own, as on tmpfs."""

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = files(tmp_path / "out")
    monkeypatch.setattr(os, "link", failing)
    with pytest.raises(OutputError, match="No space left on device"):
        replace_all(drafts)
    assert files(tmp_path / "out") == before


def test_a_disk_that_cannot_flush_folders_takes_files_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As shared folders of virtual machines."""
    reason = errno.EINVAL

    def failing(descriptor: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "fsync", failing)
    sync_folder(tmp_path)
    reason = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)
