"""Commands on Windows, as far as a stand-in tells: they write the same bytes, and leave nothing."""

from pathlib import Path

import pytest
from faults.goods import Goods
from faults.harness import contents
from faults.windows import like_windows
from faults.writing import NAMES, writing_commands

from lbm_lora import LBMPipeline
from lbm_lora.cli.main import main

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::lbm_lora.progress.LbmLoraWarning")
def test_a_command_writes_the_same_files(goods: Goods, tmp_path: Path, name: str) -> None:
    writing = next(one for one in writing_commands(goods) if one.name == name)
    found: list[dict[str, str]] = []
    for folder in ("linux", "windows"):
        (tmp_path / folder).mkdir()
    assert main(writing.words(tmp_path / "linux" / "out")) in (None, 0)
    found.append(contents(tmp_path / "linux"))
    with like_windows():
        for _ in range(1 if writing.is_new else 2):  # the second time over the first results
            assert main(writing.words(tmp_path / "windows" / "out")) in (None, 0)
    found.append(contents(tmp_path / "windows"))
    assert found[0].keys() == found[1].keys()


def test_a_model_is_saved(goods: Goods, tmp_path: Path) -> None:
    pipe = LBMPipeline.from_checkpoint(goods / "lbm/base/model.safetensors")
    with like_windows():
        for _ in range(2):
            pipe.save_pretrained(tmp_path / "pipe")
    LBMPipeline.from_pretrained(tmp_path / "pipe")
