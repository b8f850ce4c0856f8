"""Where an output may go."""

from pathlib import Path

import pytest

from lbm_lora.errors import OutputError
from lbm_lora.output_place import check_writable


def test_a_folder_that_is_a_link_to_nothing(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nothing")
    for path in (link / "a", link / "deep" / "a"):
        with pytest.raises(OutputError) as caught:
            check_writable(path)
        said = "is a link to nothing, where no file is. Remove the link, or choose another output path."
        assert str(caught.value) == f"{link} {said}"
