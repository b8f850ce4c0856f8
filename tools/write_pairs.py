"""Write every pair of the rendered scenes as images, for `python -m benchmarks.training relight`.

The source of a pair is the object under one light over the background of another, graded as for training; its target is
the render under the other light, its mask the object.
"""

import argparse
from itertools import permutations
from pathlib import Path

import common
import training
from PIL import Image


def write_pairs(work: Path, split: str, folder: Path) -> int:
    """All ordered pairs of lights of all scenes: NAME.source.png, NAME.target.png and NAME.mask.png.

    Returns:
        The number of pairs.

    Raises:
        SystemExit: no scenes of the split are rendered.
    """
    if not common.scene_paths(work, split):
        raise SystemExit(
            f"error: {work} has no scenes/{split}. Render them: python tools/render_pairs.py --work {work}"
        )
    scenes = training.load_scenes(work, split)
    count = 0
    for scene, alpha in enumerate(scenes.alpha):
        mask = (alpha * 255).round().astype("uint8")
        for i, j in permutations(range(len(scenes.objects[scene])), 2):
            images = {"source": scenes.composite(scene, i, j), "target": scenes.composite(scene, j, j), "mask": mask}
            for role, pixels in images.items():
                with common.atomic(folder / f"{scene:04}-{i}-to-{j}.{role}.png") as temporary:
                    Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("mini_work"), help="folder with the rendered scenes")
    parser.add_argument("--to", type=Path, required=True, help="folder for train/ and held_out/")
    args = parser.parse_args()
    for split in ("train", "held_out"):
        print(f"{write_pairs(args.work, split, args.to / split)} pairs in {args.to / split}")


if __name__ == "__main__":
    main()
