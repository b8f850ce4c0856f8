"""Sources of training pairs as images."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

TOOLS = Path(__file__).parents[3] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The scripts import each other by their plain names."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import write_sources  # pyright: ignore[reportMissingImports]

    return write_sources


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Six scenes of random images, 8 x 8."""
    draw, folder = np.random.default_rng(0), tmp_path / "scenes" / "train"
    folder.mkdir(parents=True)
    for number in range(6):
        np.savez(
            folder / f"{number:04}.npz",
            objects=draw.integers(0, 200, (4, 8, 8, 3), dtype=np.uint8),
            backgrounds=draw.integers(0, 200, (4, 8, 8, 3), dtype=np.uint8),
            alpha=draw.random((8, 8), dtype=np.float32),
            info=np.array(json.dumps({"objects": [{"mesh": "cube"}], "lights": []})),
        )
    return tmp_path


def test_each_scene_gives_a_graded_source_under_two_lights(tool: ModuleType, work: Path) -> None:
    written = tool.write_sources(work, 5, work / "sources")
    assert [path.name for path in written] == [
        "0000-cube-0-over-1.source.png",
        "0001-cube-1-over-2.source.png",
        "0002-cube-2-over-3.source.png",
        "0003-cube-3-over-0.source.png",
        "0004-cube-0-over-2.source.png",
    ]
    graded = tool.training.load_scenes(work, "train")
    for scene, (i, j) in ((1, (1, 2)), (4, (0, 2))):
        assert np.array_equal(np.asarray(Image.open(written[scene])), graded.composite(scene, i, j))


def test_images_do_not_depend_on_how_many_are_written(tool: ModuleType, work: Path) -> None:
    few, many = (tool.write_sources(work, count, work / str(count)) for count in (2, 6))
    assert [path.read_bytes() for path in few] == [path.read_bytes() for path in many[:2]]


def test_more_than_were_rendered_are_refused(tool: ModuleType, work: Path) -> None:
    with pytest.raises(SystemExit, match=r"--count 7: 6 training scenes are rendered\. Give 1 to 6\."):
        tool.write_sources(work, 7, work / "sources")
    assert not (work / "sources").exists()
