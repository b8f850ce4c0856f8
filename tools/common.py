"""Helpers shared by the scripts that make the bundled mini model."""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGE_SIZE = 128
TRAIN_SCENES = 589
HELD_OUT_SCENES = 40
CHECK_SCENES = 40
SPLITS = ("train", "held_out", "check")
"""held_out was looked at while the model was made; check has other scenes of the same assets, measured at the end."""
LIGHTS_PER_SCENE = 4

# Held out: no image with one of these meshes, textures or HDRIs is ever trained on.
HELD_OUT_MESHES = ("lemon", "milk")
HELD_OUT_TEXTURES = ("lemon", "clay", "blue-wood", "wood-tiles", "steel-scratched")
HELD_OUT_HDRIS = ("sunset", "forest", "lobby", "dawn")
TRAIN_MESHES = ("bread", "bottle", "cereal", "cube", "sphere8", "cylinder", "handles")
# Left out altogether because they show a brand: the can mesh and these textures.
BRANDED_TEXTURES = ("can", "soda", "cereal")

ROBOSUITE_VERSION = "1.5.2"
PMNDRS_VERSION = "1.7.0"


def parse_args(description: str, **defaults: int) -> argparse.Namespace:
    """Read `--work DIR` and one integer option per keyword (its value is the default)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, default=Path("mini_work"), help="folder for everything that is made")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; sync and rename it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def mesh_path(work: Path, name: str) -> Path:
    """The OBJ file of a robosuite mesh."""
    return work / "robo/robosuite/models/assets/objects/meshes" / f"{name}.obj"


def texture_paths(work: Path) -> list[Path]:
    """All robosuite textures without a brand, sorted by name."""
    folder = work / "robo/robosuite/models/assets/textures"
    return [path for path in sorted(folder.glob("*.png")) if path.stem not in BRANDED_TEXTURES]


def hdri_paths(work: Path) -> list[Path]:
    """All HDRIs as unpacked by fetch_assets.py, sorted by name."""
    return sorted((work / "hdri").glob("*.exr"))


def scene_paths(work: Path, split: str) -> list[Path]:
    """The rendered scenes of a split, sorted by number."""
    return sorted((work / "scenes" / split).glob("[0-9]*.npz"))


def over(foreground: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Composite uint8 images (..., height, width, 3) by `alpha` (height, width) in [0, 1]; uint8."""
    mixed = alpha[..., None] * foreground.astype(np.float32) + (1 - alpha[..., None]) * background
    return np.round(mixed).clip(0, 255).astype(np.uint8)


def contact_sheet(rows: list[list[np.ndarray]], path: Path, gap: int = 2) -> None:
    """Write uint8 images of one size as a grid, one list per row."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + gap), len(rows) * (height + gap)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(Image.fromarray(image), (x * (width + gap), y * (height + gap)))
    with atomic(path) as temporary:
        sheet.save(temporary, format="PNG")
