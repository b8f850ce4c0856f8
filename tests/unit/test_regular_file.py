"""What may be read: regular files, with their sizes. FIFOs and devices: test_plain_text.py; tests/faults."""

from pathlib import Path

import pytest

from lbm_lora.regular_file import ENDS, check_regular, ends_digest, file_digest


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


def test_digests_of_a_file_and_of_its_ends(tmp_path: Path) -> None:
    content, paths = bytearray(4 * ENDS), [tmp_path / name for name in ("whole", "first", "middle", "last")]
    for path, place in zip(paths, (None, 0, 2 * ENDS, -1), strict=True):
        changed = bytearray(content)
        if place is not None:
            changed[place] = 1
        path.write_bytes(changed)
    assert len({file_digest(path) for path in paths}) == 4
    assert [ends_digest(path) == ends_digest(paths[0]) for path in paths] == [True, False, True, False]
    with pytest.raises(IsADirectoryError):
        file_digest(tmp_path)
    (tmp_path / "short").write_bytes(b"a")
    assert ends_digest(tmp_path / "short") != ends_digest(paths[0])
