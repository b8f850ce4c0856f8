"""What may be read: regular files, with their sizes. FIFOs and devices: test_plain_text.py; tests/faults."""

from pathlib import Path

import pytest

from lbm_lora.regular_file import check_regular


def test_the_size_of_a_file_also_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(7))
    (tmp_path / "link").symlink_to("a")
    assert (check_regular(tmp_path / "a"), check_regular(tmp_path / "link")) == (7, 7)


@pytest.mark.parametrize(
    ("name", "error"), [("folder", IsADirectoryError), ("none", FileNotFoundError), ("null", OSError)]
)
def test_what_is_no_file(tmp_path: Path, name: str, error: type[OSError]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "null").symlink_to("/dev/null")
    with pytest.raises(error) as caught:
        check_regular(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)
    assert caught.value.strerror
