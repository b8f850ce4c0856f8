"""Pairs out of the rendered scenes of tools/render_pairs.py, graded as the bundled model's training graded them."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import ROOT

KEYS = {"source_key": "source.png", "target_key": "target.png"}
"""How the pictures of a pair are called, in a training file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A pair that is measured on.

    Attributes:
        source, target: uint8 (height, width, 3).
        mask: of the object, in [0, 1], (height, width).
    """

    name: str
    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray


def load_scenes(work: Path, split: str) -> Any:
    """The graded scenes of a split, `tools/training.py`'s Scenes.

    Raises:
        SystemExit: none are rendered.
    """
    if not any((work / "scenes" / split).glob("[0-9]*.npz")):
        raise SystemExit(
            f"error: --scenes {work} has no scenes/{split}. Render them: python tools/render_pairs.py --work {work}"
        )
    tools = str(ROOT / "tools")
    if tools not in sys.path:
        sys.path.append(tools)  # its scripts import each other by bare names
    training: Any = __import__("training")
    return training.load_scenes(work, split)


def write_pairs(scenes: Any, folder: Path) -> None:
    """Every ordered pair of lights of every scene, as NAME.source.png, NAME.target.png and NAME.mask.png.

    The source is the object under one light over the background of the other, the target the render under the other.
    """
    folder.mkdir(parents=True)
    for scene, alpha in enumerate(scenes.alpha):
        mask = (alpha * 255).round().astype(np.uint8)
        for i, j in permutations(range(len(scenes.objects[scene])), 2):
            pictures = {"source": scenes.composite(scene, i, j), "target": scenes.composite(scene, j, j), "mask": mask}
            for role, pixels in pictures.items():
                Image.fromarray(pixels).save(folder / f"{scene:04d}-{i}-to-{j}.{role}.png", compress_level=1)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is whole or not there: made under another name, unless it is there."""
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
        make(part)
        part.rename(folder)
    return folder


def read_pairs(folder: Path) -> list[Pair]:
    """All pairs of a folder, sorted by name."""
    return [
        Pair(
            name=path.name.removesuffix(".source.png"),
            source=np.asarray(Image.open(path)),
            target=np.asarray(Image.open(_of(path, "target"))),
            mask=np.asarray(Image.open(_of(path, "mask"))) / 255,
        )
        for path in sorted(folder.glob("*.source.png"))
    ]


def _of(source: Path, role: str) -> Path:
    return source.with_name(source.name.replace(".source.", f".{role}."))
