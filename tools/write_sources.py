"""Write sources of training pairs as pictures: what an extraction of the mini model is calibrated on.

One picture of each of the first scenes, graded as for training; a scene is drawn by its number alone, so these are the
same pictures however many scenes are rendered. No mesh, texture or HDRI of a held-out pair is among them.
"""

import argparse
from pathlib import Path

import common
import training
from PIL import Image


def write_sources(work: Path, count: int, folder: Path) -> list[Path]:
    """The source of one pair of each of `count` scenes, in the order of the scenes' numbers.

    Raises:
        SystemExit: fewer scenes are rendered.
    """
    rendered = len(common.scene_paths(work, "train"))
    if not 1 <= count <= rendered:
        raise SystemExit(f"error: --count {count}: {rendered} training scenes are rendered. Give 1 to {rendered}.")
    scenes = training.load_scenes(work, "train", first=count)
    written: list[Path] = []
    for scene in range(count):
        i = scene % common.LIGHTS_PER_SCENE
        j = (i + 1 + scene // common.LIGHTS_PER_SCENE % (common.LIGHTS_PER_SCENE - 1)) % common.LIGHTS_PER_SCENE
        path = folder / f"{scene:04}-{scenes.info[scene]['objects'][0]['mesh']}-{i}-over-{j}.source.png"
        with common.atomic(path) as temporary:
            Image.fromarray(scenes.composite(scene, i, j)).save(temporary, format="PNG", optimize=True)
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("mini_work"), help="folder with the rendered scenes")
    parser.add_argument("--count", type=int, default=64, help="of pictures")
    parser.add_argument("--to", type=Path, required=True, help="folder for the pictures")
    args = parser.parse_args()
    print(f"{len(write_sources(args.work, args.count, args.to))} pictures in {args.to}")


if __name__ == "__main__":
    main()
