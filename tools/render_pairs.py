"""Render objects under several lights each: the data of the mini model.

A scene is one or two textured meshes and a camera; a light is an HDRI, a yaw, a tint and an exposure. Each scene goes
to one file, `scenes/SPLIT/NNNN.npz`:

- objects      uint8 (lights, 128, 128, 3)  the object alone, not multiplied by alpha
- backgrounds  uint8 (lights, 128, 128, 3)  the same camera and light without the object
- alpha        float16 (128, 128)           the object's coverage, the same under every light
- info         JSON text                    what was drawn, by name and number

The render under light j is over(objects[j], alpha, backgrounds[j]). A pair (i, j) has as source the object under light
i over background j, and as target the render under light j.
"""

import json
from pathlib import Path
from typing import Any

import common
import mitsuba as mi
import numpy as np
from PIL import Image
from scipy import ndimage

SAMPLES = {"train": 96, "held_out": 192, "check": 192}
BACKGROUND_SAMPLES = 16
FIELD_OF_VIEW = 55.0
CAMERA_DISTANCE = 3.0
GREY = 0.48
"""Exposed value of a white surface under a light whose background is as bright as the light is on average."""
FLAT_MESHES = ("cereal",)
"""Meshes whose file has unusable normals."""


def mesh_shape(work: Path, name: str) -> dict[str, Any]:
    """A mesh as Mitsuba describes it."""
    return {"type": "obj", "filename": str(common.mesh_path(work, name)), "face_normals": name in FLAT_MESHES}


def unit_transform(mesh: dict[str, Any]) -> "mi.ScalarTransform4f":
    """Centre a mesh and scale it to a size of about 1: the mean of half its box's diagonal and half its mean side."""
    box = mi.load_dict(mesh).bbox()
    extents = np.array(box.extents())
    radius = float(np.linalg.norm(extents) / 2 + np.prod(extents) ** (1 / 3)) / 2
    return mi.ScalarTransform4f().scale(1 / radius).translate(-np.array(box.center()))


def draw_object(
    work: Path, split: str, rng: np.random.Generator, scale: float, centre: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw one textured mesh; give its Mitsuba description and its description in words."""
    held_out = split != "train"
    meshes = common.HELD_OUT_MESHES if held_out else common.TRAIN_MESHES
    textures = [path for path in common.texture_paths(work) if (path.stem in common.HELD_OUT_TEXTURES) == held_out]
    mesh = str(rng.choice(meshes))
    texture = textures[rng.integers(len(textures))]

    gain = rng.uniform(0.55, 1.0, 3) if rng.random() < 0.5 else np.full(3, rng.uniform(0.7, 1.0))
    pixels = (
        np.asarray(Image.open(texture).convert("RGB").resize((256, 256), Image.Resampling.LANCZOS), np.float32) / 255
    )
    albedo = np.clip(pixels**2.2 * gain, 0.02, 0.85).astype(np.float32)
    uv_scale = float(rng.uniform(0.6, 1.6))
    roughness, specular = float(rng.uniform(0.25, 0.9)), float(rng.uniform(0.1, 0.7))

    axis = rng.normal(size=3)
    angle = float(rng.uniform(0, 360))
    stretch = rng.uniform(0.8, 1.2, 3)
    to_world = mi.ScalarTransform4f().translate(centre).scale(scale).rotate(axis / np.linalg.norm(axis), angle).scale(
        stretch
    ) @ unit_transform(mesh_shape(work, mesh))
    shape = {
        **mesh_shape(work, mesh),
        "to_world": to_world,
        "bsdf": {
            "type": "twosided",
            "surface": {
                "type": "principled",
                "base_color": {
                    "type": "bitmap",
                    "bitmap": mi.Bitmap(albedo),
                    "raw": True,
                    "to_uv": mi.ScalarTransform3f().scale(uv_scale),
                },
                "roughness": roughness,
                "specular": specular,
            },
        },
    }
    words = {"mesh": mesh, "texture": texture.stem, "roughness": roughness, "specular": specular}
    return shape, words


def draw_light(work: Path, split: str, rng: np.random.Generator, taken: set[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Draw an HDRI not in `taken`, turned, tinted and scaled to mean luminance 1 over the sphere."""
    held_out = split != "train"
    paths = [
        path
        for path in common.hdri_paths(work)
        if (path.stem in common.HELD_OUT_HDRIS) == held_out and path.stem not in taken
    ]
    path = paths[rng.integers(len(paths))]
    radiance = np.array(mi.Bitmap(str(path)).convert(mi.Bitmap.PixelFormat.RGB, mi.Struct.Type.Float32, False))
    # The packed HDRIs ring at their lamps and suns, into false colors and below zero: make the brightest pixels and
    # the negative ones white, by their own brightest channel or, where that is negative too, by their neighbors'.
    peak = radiance.max(2, keepdims=True)
    white = np.where(peak > 0, peak, ndimage.maximum_filter(peak, (3, 3, 1)).clip(0))
    damaged = (radiance.min(2, keepdims=True) < 0) | (peak > 300 * np.median(radiance))
    radiance = np.where(damaged, white, radiance).astype(np.float32)
    yaw = float(rng.uniform(0, 360))
    tint = np.exp(rng.normal(size=3) * (0.28, 0.1, 0.28))
    radiance = np.roll(radiance, round(yaw / 360 * radiance.shape[1]), axis=1) * tint
    weight = np.sin((np.arange(radiance.shape[0]) + 0.5) / radiance.shape[0] * np.pi)
    mean = (luminance(radiance).mean(1) * weight).sum() / weight.sum()
    words = {"hdri": path.stem, "yaw": yaw, "tint": tint.tolist()}
    return (radiance / mean).astype(np.float32), words


def luminance(pixels: np.ndarray) -> np.ndarray:
    """Rec. 709 luminance of linear pixels (..., 3)."""
    return pixels @ np.array([0.2126, 0.7152, 0.0722], np.float32)


def develop(linear: np.ndarray) -> np.ndarray:
    """Linear radiance to sRGB uint8, with a soft shoulder that reaches white at 5."""
    shoulder = linear * (1 + linear / 25) / (1 + linear)
    value = np.clip(shoulder, 0, 1)
    encoded = np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)
    return np.round(encoded * 255).astype(np.uint8)


def render(
    shapes: dict[str, Any], radiance: np.ndarray, camera: "mi.ScalarTransform4f", samples: int, seed: int
) -> np.ndarray:
    """Render shapes under a light; linear RGBA (128, 128, 4), with alpha where there are shapes."""
    scene = mi.load_dict(
        {
            "type": "scene",
            "integrator": {"type": "path", "max_depth": 4, "hide_emitters": bool(shapes)},
            "sensor": {
                "type": "perspective",
                "fov": FIELD_OF_VIEW,
                "to_world": camera,
                "film": {
                    "type": "hdrfilm",
                    "width": common.IMAGE_SIZE,
                    "height": common.IMAGE_SIZE,
                    "pixel_format": "rgba",
                    "rfilter": {"type": "box"},
                },
            },
            "light": {"type": "envmap", "bitmap": mi.Bitmap(radiance)},
            **shapes,
        }
    )
    return np.maximum(np.array(mi.render(scene, spp=samples, seed=seed)), 0)


def make_scene(work: Path, split: str, number: int) -> dict[str, np.ndarray]:
    """Draw and render one scene from its split and number alone."""
    rng = np.random.default_rng([number, common.SPLITS.index(split)])
    if rng.random() < 0.3:
        left = rng.uniform(0.6, 0.75)
        spots = [
            (rng.uniform(0.8, 1.05), [-left, 0, 0]),
            (rng.uniform(0.8, 1.05), [left, rng.uniform(-0.2, 0.2), rng.uniform(-0.4, 0.4)]),
        ]
    else:
        spots = [(rng.uniform(1.15, 1.5), [*rng.uniform(-0.2, 0.2, 2), 0])]
    drawn = [draw_object(work, split, rng, scale, np.array(centre)) for scale, centre in spots]
    shapes = {f"object_{i}": shape for i, (shape, _) in enumerate(drawn)}
    elevation = np.radians(rng.uniform(-10, 30))
    origin = CAMERA_DISTANCE * np.array([0, np.sin(elevation), np.cos(elevation)])
    camera = mi.ScalarTransform4f().look_at(origin=origin, target=[0, 0, 0], up=[0, 1, 0])

    objects, backgrounds, alphas, lights, taken = [], [], [], [], set[str]()
    for light in range(common.LIGHTS_PER_SCENE):
        radiance, words = draw_light(work, split, rng, taken)
        taken.add(words["hdri"])
        background = render({}, radiance, camera, BACKGROUND_SAMPLES, light)[..., :3]
        # Metered on both the light that falls on the object (mean 1) and the background.
        behind = np.clip(luminance(background).mean(), 0.15, 6)
        exposure = GREY * 2 ** rng.uniform(-0.7, 0.7) / np.sqrt(behind)
        lit = render(shapes, radiance, camera, SAMPLES[split], light)
        straight = lit[..., :3] / np.maximum(lit[..., 3:], 1e-3)
        objects.append(develop(straight * exposure))
        backgrounds.append(develop(background * exposure))
        alphas.append(lit[..., 3].clip(0, 1))
        lights.append(words | {"exposure": float(exposure)})
    info = {"objects": [words for _, words in drawn], "lights": lights, "elevation": float(np.degrees(elevation))}
    return {
        "objects": np.stack(objects),
        "backgrounds": np.stack(backgrounds),
        "alpha": np.mean(alphas, 0).astype(np.float16),
        "info": np.array(json.dumps(info)),
    }


def main() -> None:
    """Render what is not on disk yet."""
    args = common.parse_args(
        __doc__ or "", train=common.TRAIN_SCENES, held_out=common.HELD_OUT_SCENES, check=common.CHECK_SCENES
    )
    mi.set_variant("llvm_ad_rgb", "scalar_rgb")
    for split, count in (("held_out", args.held_out), ("check", args.check), ("train", args.train)):
        for number in range(count):
            path = args.work / "scenes" / split / f"{number:04d}.npz"
            if path.exists():
                continue
            scene = make_scene(args.work, split, number)
            with common.atomic(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **scene)
            if number % 50 == 0:
                print(f"{split} {number}/{count}", flush=True)


if __name__ == "__main__":
    main()
