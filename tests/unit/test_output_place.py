"""Where an output may go."""

import errno
import os
from pathlib import Path

import pytest

from lbm_lora.errors import OutputError
from lbm_lora.output_place import check_way, check_writable


def test_a_folder_that_is_a_link_to_nothing(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nothing")
    for path in (link / "a", link / "deep" / "a"):
        with pytest.raises(OutputError) as caught:
            check_writable(path)
        said = "is a link to nothing, where no file is. Remove the link, or choose another output path."
        assert str(caught.value) == f"{link} {said}"


@pytest.mark.parametrize("name", ["a.bin", "a b\t\\c\nd\r#.bin"])
def test_a_file_that_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).write_text("mounted")
    (tmp_path / "other").write_text("")
    written = str(tmp_path / name)
    for sign, escape in (("\\", "\\134"), (" ", "\\040"), ("\t", "\\011"), ("\n", "\\012")):
        written = written.replace(sign, escape)
    mounts = f"24 1 0:22 / /proc rw - proc proc rw\n42 27 254:0 /x {written} rw,relatime - ext4 /dev/vda rw\n"
    read_bytes = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: mounts.encode() if self.name == "mountinfo" else read_bytes(self)
    )
    with pytest.raises(OutputError) as caught:
        check_writable(tmp_path / name, "the report")
    said = "the report cannot be replaced: it is mounted. Mount its folder, or choose another path."
    assert str(caught.value) == said
    check_writable(tmp_path / "other")
    check_writable(tmp_path / "new")


def test_a_file_that_must_not_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux answers so for a file with `chattr +i`, and for one of another user in a sticky folder."""
    path = tmp_path / "a.bin"
    path.write_text("protected")

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        with pytest.raises(OutputError) as caught:
            check_writable(path)
    said = f"{path} cannot be replaced: Operation not permitted. Choose another path."
    assert str(caught.value) == said
    check_writable(path)
    assert path.read_text() == "protected"


def test_an_empty_folder_that_takes_the_place_of_a_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rmdir = tmp_path / "a.bin", os.rmdir
    path.write_text("mine")

    def moved(path: Path) -> None:
        path.rename(tmp_path / "moved")
        path.mkdir()
        rmdir(path)

    monkeypatch.setattr(os, "rmdir", moved)
    with pytest.raises(OutputError, match=r"a\.bin is a folder\. Give the path of a file\."):
        check_writable(path)
    assert path.is_dir()


def test_the_check_leaves_folders_and_links(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "file").write_text("")
    (tmp_path / "other").symlink_to("file")
    before = sorted(tmp_path.iterdir())
    for path in before:
        check_writable(path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_way_through_a_missing_folder_and_back_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    check_way(tmp_path / "there" / ".." / "a", "the report")
    check_way(tmp_path / "new" / "a", "the report")
    with pytest.raises(OutputError, match=r"^the report goes through .*/new, which does not exist, and back\."):
        check_way(tmp_path / "new" / ".." / "a", "the report")
    with pytest.raises(OutputError, match=r"^x goes through new/folder, which does not exist"):
        check_way(Path("new/folder/../../a"), "x")
