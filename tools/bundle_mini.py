"""Put the mini model, sample pairs, photos, credits and the measured results into src/lbm_lora/bundled.

Run it again after any trainer: it copies what is there, and takes results.json from what the trainers measured.
"""

import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import common
import skimage.data
import training
from PIL import Image

BUNDLED = Path(__file__).resolve().parents[1] / "src/lbm_lora/bundled"
LIMIT_MB = 36
PAIRS = 12
PHOTO_SIZE = 256
PACKAGES = ("torch", "diffusers", "mitsuba", "numpy", "scipy", "scikit-image", "pillow", "safetensors")
PHOTO_CREDITS = {
    "astronaut": "Eileen Collins, NASA Great Images database (https://flic.kr/p/r9qvLn), public domain",
    "chelsea": "Chelsea the cat, by Stefan van der Walt, CC0",
    "coffee": "a cup of coffee, by Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0",
    "rocket": "launch of DSCOVR, SpaceX (https://www.flickr.com/photos/spacexphotos/16511594820/), public domain",
}


def copy_model(work: Path) -> None:
    """Copy the folders of the backbone and, where it exists, the tuned model."""
    for name in ("backbone", "tuned"):
        for source in sorted((work / "mini" / name).rglob("*.*")):
            if source.is_file() and not source.name.startswith("."):
                target = BUNDLED / "mini" / source.relative_to(work / "mini")
                with common.atomic(target) as temporary:
                    shutil.copyfile(source, temporary)


def write_results(work: Path) -> None:
    """Gather what the trainers measured into mini/results.json."""
    results: dict[str, Any] = {}
    for name in ("vae", "backbone", "tuned"):
        path = work / f"mini/{name}_result.json"
        if path.exists():
            results[name] = json.loads(path.read_text())
    cores = len(os.sched_getaffinity(0))
    results["machine"] = {"cores": cores, "processes": training.PROCESSES, "architecture": platform.machine()}
    results["versions"] = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    common.write_json(BUNDLED / "mini/results.json", results)


def write_pairs(work: Path) -> None:
    """Write one pair of every few scenes of the check split, in the order of the scenes' numbers."""
    scenes = training.load_scenes(work, "check")
    step = len(scenes.alpha) // PAIRS
    for pair in range(PAIRS):
        scene, i = pair * step, pair % common.LIGHTS_PER_SCENE
        j = (i + 1 + pair // common.LIGHTS_PER_SCENE) % common.LIGHTS_PER_SCENE
        mask = (scenes.alpha[scene] * 255).round().astype("uint8")
        images = {"source": scenes.composite(scene, i, j), "target": scenes.composite(scene, j, j), "mask": mask}
        lights = [scenes.info[scene]["lights"][light]["hdri"] for light in (i, j)]
        name = f"{scenes.info[scene]['objects'][0]['mesh']}-{pair:02d}-{lights[0]}-to-{lights[1]}"
        for kind, image in images.items():
            with common.atomic(BUNDLED / f"pairs/{name}.{kind}.png") as temporary:
                Image.fromarray(image).save(temporary, format="PNG", optimize=True)


def write_photos() -> None:
    """Write the photos as small JPEGs."""
    for name in training.PHOTOS:
        image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        image.thumbnail((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.LANCZOS)
        with common.atomic(BUNDLED / f"photos/{name}.jpg") as temporary:
            image.save(temporary, format="JPEG", quality=90)


def write_credits(work: Path) -> None:
    """Write CREDITS.md from the licences in the packages."""
    licence_folder = work / f"robo/robosuite-{common.ROBOSUITE_VERSION}.dist-info/licenses"
    licence = (licence_folder / "LICENSE").read_text().split("This software includes")[0].strip()
    team = (licence_folder / "AUTHORS").read_text().split("Core Team")[1].split("Contributors")[0]
    authors = [line.split(" <")[0].strip() for line in team.splitlines() if line.strip()]
    meshes = sorted({*common.TRAIN_MESHES, *common.HELD_OUT_MESHES})
    textures = [path.stem for path in common.texture_paths(work)]
    hdris = [path.stem for path in common.hdri_paths(work)]
    lines = [
        "# Credits",
        "",
        "The weights in `mini/` were trained from nothing by the scripts in `tools/`, on these assets alone.",
        "The images in `pairs/` are renders of them.",
        "",
        f"## Meshes and textures: robosuite {common.ROBOSUITE_VERSION} (PyPI), MIT",
        "",
        f"Core team, as the package names it: {', '.join(authors)}.",
        "",
        f"Meshes: {', '.join(meshes)}.",
        f"Textures: {', '.join(textures)}.",
        f"Meshes held out of all training: {', '.join(common.HELD_OUT_MESHES)}.",
        f"Textures held out of all training: {', '.join(common.HELD_OUT_TEXTURES)}.",
        "Left out because they show brands: the mesh can and the textures " + ", ".join(common.BRANDED_TEXTURES) + ".",
        "",
        "```",
        licence,
        "```",
        "",
        f"## HDRIs: @pmndrs/assets {common.PMNDRS_VERSION} (npm), CC0 1.0",
        "",
        "They come from Poly Haven (https://polyhaven.com), CC0; the package names no authors.",
        "",
        f"HDRIs: {', '.join(hdris)}.",
        f"Held out of all training: {', '.join(common.HELD_OUT_HDRIS)}.",
        "",
        f"## Photos: scikit-image {version('scikit-image')} (PyPI)",
        "",
        "Scaled down here. The VAE was trained on crops of them.",
        "",
        *(f"- `photos/{name}.jpg`: {PHOTO_CREDITS[name]}." for name in sorted(training.PHOTOS)),
    ]
    with common.atomic(BUNDLED / "CREDITS.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Write everything; raise ValueError where it is too large."""
    work: Path = common.parse_args(__doc__ or "").work
    copy_model(work)
    write_results(work)
    write_pairs(work)
    write_photos()
    write_credits(work)
    size = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) / 1e6
    print(f"{BUNDLED}: {size:.1f} MB")
    if size > LIMIT_MB:
        raise ValueError(f"{size:.1f} MB are bundled, more than {LIMIT_MB} MB")


if __name__ == "__main__":
    main()
