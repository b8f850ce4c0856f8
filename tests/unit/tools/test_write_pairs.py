"""Pairs of rendered scenes as images."""

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
    import write_pairs  # pyright: ignore[reportMissingImports]

    return write_pairs


def test_every_ordered_pair_of_lights_is_written(tool: ModuleType, tmp_path: Path) -> None:
    draw, scenes = np.random.default_rng(0), tmp_path / "scenes" / "held_out"
    scenes.mkdir(parents=True)
    for number in range(2):
        np.savez(
            scenes / f"{number:04}.npz",
            objects=draw.integers(0, 200, (3, 8, 8, 3), dtype=np.uint8),
            backgrounds=draw.integers(0, 200, (3, 8, 8, 3), dtype=np.uint8),
            alpha=np.eye(8, dtype=np.float32),
            info=np.array(json.dumps({"objects": [{"mesh": "cube"}], "lights": []})),
        )
    assert tool.write_pairs(tmp_path, "held_out", tmp_path / "pairs") == 2 * 3 * 2
    graded = tool.training.load_scenes(tmp_path, "held_out")
    written = {
        role: np.asarray(Image.open(tmp_path / f"pairs/0001-0-to-2.{role}.png"))
        for role in ("source", "target", "mask")
    }
    assert np.array_equal(written["source"], graded.composite(1, 0, 2))
    assert np.array_equal(written["target"], graded.composite(1, 2, 2))
    assert np.array_equal(written["mask"], 255 * np.eye(8))
    assert len(list((tmp_path / "pairs").iterdir())) == 12 * 3


def test_scenes_that_are_not_rendered_are_named_with_the_command(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no scenes/train\. Render them: python tools/render_pairs\.py"):
        tool.write_pairs(tmp_path, "train", tmp_path / "pairs")
